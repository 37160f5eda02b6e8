"""What a client's channel knows of others in its process: nothing."""

from __future__ import annotations

import grpc
import pytest
from graft import channel as channels
from graft.channel import open_channel
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.support.ports import kept_port


async def check(channel: grpc.aio.Channel) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
    return int(answer.status)


async def test_who_comes_anew_to_a_server_that_is_back_is_not_refused_because_another_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long_waits = {"grpc.initial_reconnect_backoff_ms": 600_000}
    long_waits["grpc.max_reconnect_backoff_ms"] = 600_000
    monkeypatch.setattr(channels, "OPTIONS", tuple((dict(channels.OPTIONS) | long_waits).items()))
    address = f"127.0.0.1:{kept_port()}"
    async with open_channel(address) as waits:
        with pytest.raises(grpc.aio.AioRpcError, match="Connection refused"):
            await check(waits)
        server = grpc.aio.server()
        server.add_insecure_port(address)
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)  # type: ignore[attr-defined]
        await server.start()
        try:
            async with open_channel(address) as new:
                assert await check(new) == health_pb2.HealthCheckResponse.SERVING
        finally:
            await server.stop(None)
