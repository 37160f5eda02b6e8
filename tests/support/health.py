"""What the health service of a server says, by name."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

STATUS = health_pb2.HealthCheckResponse.ServingStatus.Name
PROBES = ("startup", "readiness", "liveness")


async def health(channel: grpc.aio.Channel, name: str = "") -> bool:
    """Whether a name is SERVING; it must be known."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
    return STATUS(answer.status) == "SERVING"


async def probes(channel: grpc.aio.Channel) -> tuple[bool, bool, bool]:
    """Startup, readiness, liveness."""
    startup, readiness, liveness = [await health(channel, name) for name in PROBES]
    return startup, readiness, liveness
