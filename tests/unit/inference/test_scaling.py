"""Replicas that come and go under load: nobody's request fails, and nothing that runs is cut."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from graft.channel import open_channel, rpc_errors
from graft.errors import GraftError, Reason
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.server import READINESS
from services.inference.engines.fake import FakeEngine
from services.inference.registry.memory import MemoryRegistry
from tests.support.health import probes
from tests.support.inference import (
    BASE,
    FINGERPRINT,
    adapter_resource,
    question,
    start_inference,
    write_adapter,
)
from tests.support.waiting import eventually

BOT = adapter_resource("bot")
# How long a drain may take that has something to wait for, and when one must be over that has nothing.
DRAIN_S, WELL_BEFORE_S = 240.0, 60.0


@pytest.fixture
async def registry(tmp_path: Path) -> MemoryRegistry:
    """With one adapter in production."""
    registry = MemoryRegistry(FINGERPRINT)
    await registry.add_adapter(BOT, BASE)
    await registry.add_version(BOT, write_adapter(tmp_path / "one", "one"))
    await registry.set_alias(BOT, "production", 1)
    return registry


async def test_scale_in_drains_and_no_request_of_a_client_of_both_fails(
    tmp_path: Path, registry: MemoryRegistry
) -> None:
    going_engine = FakeEngine()
    async with (
        start_inference(tmp_path / "stays", registry=registry, require_production=True) as stays,
        start_inference(
            tmp_path / "goes",
            registry=registry,
            require_production=True,
            engine=going_engine,
            drain_timeout_s=DRAIN_S,
        ) as goes,
    ):
        both = f"ipv4:{stays.server.address},{goes.server.address}"
        going_engine.hold(after_tokens=2)
        streaming = asyncio.create_task(_stream(goes.stub))
        await eventually(lambda: going_engine.unfinished() == 1, "the stream")
        async with open_channel(both) as channel:
            load = asyncio.create_task(_load(channel, requests=60))
            await asyncio.sleep(0)
            stopping = asyncio.create_task(goes.server.stop())
            await eventually(lambda: not goes.server.grpc.says(READINESS), "the drain")
            # Those that are held here came before the drain: they are answered when it goes on.
            await going_engine.release()
            counts = await asyncio.wait_for(load, WELL_BEFORE_S)
        assert counts == Counter(ok=60)
        text, finished = await streaming
        assert finished
        assert len(text) == 8
        # Nothing runs any more.
        await asyncio.wait_for(stopping, WELL_BEFORE_S)


async def test_a_drain_waits_for_answers_and_not_for_who_watches_its_health(
    tmp_path: Path, registry: MemoryRegistry
) -> None:
    """As a call does that gRPC's core took while the server stopped, a watch never ends by itself."""
    async with start_inference(tmp_path, registry=registry, drain_timeout_s=DRAIN_S) as service:
        stub: Any = health_pb2_grpc.HealthStub(service.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=READINESS))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        service.fake.hold(after_tokens=2)
        streaming = asyncio.create_task(_stream(service.stub))
        await eventually(lambda: service.fake.unfinished() == 1, "the stream")
        stopping = asyncio.create_task(service.server.stop())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await service.fake.release()
        assert (await streaming)[1]
        await asyncio.wait_for(stopping, WELL_BEFORE_S)


@pytest.mark.parametrize("answers", [0, 20, 100, 200])
async def test_requests_that_reach_a_replica_as_it_stops_go_to_the_other(
    tmp_path: Path, registry: MemoryRegistry, answers: int
) -> None:
    """Many at once: some are on their way when it stops to take any, which gRPC answers as CANCELLED."""
    counts = Counter[str]()
    async with (
        start_inference(tmp_path / "stays", registry=registry) as stays,
        start_inference(tmp_path / "goes", registry=registry) as goes,
        open_channel(f"ipv4:{stays.server.address},{goes.server.address}") as channel,
    ):
        loads = [asyncio.create_task(_load(channel, 50, counts)) for _ in range(8)]
        await eventually(lambda: counts.total() > answers, "answers")
        await goes.server.stop()
        await asyncio.gather(*loads)
    assert counts == Counter(ok=400)


async def _load(
    channel: grpc.aio.Channel, requests: int, counts: Counter[str] | None = None
) -> Counter[str]:
    """Counts the answers, and the errors by what they say, as they come."""
    stub = InferenceServiceStub(channel)
    counts = Counter() if counts is None else counts
    for _ in range(requests):
        try:
            await stub.Generate(question("bot"))
            counts["ok"] += 1
        except grpc.aio.AioRpcError as error:
            counts[f"{error.code().name} {error.details()}"] += 1
    return counts


async def _stream(stub: InferenceServiceStub) -> tuple[str, bool]:
    text, finished = "", False
    async for part in stub.StreamGenerate(question("bot")):  # type: ignore[attr-defined]
        text += part.text
        finished = part.HasField("usage")
    return text, finished


async def test_a_drain_is_seen_at_once_and_ends_within_its_time_whatever_runs(
    tmp_path: Path, registry: MemoryRegistry
) -> None:
    engine = FakeEngine()
    async with start_inference(
        tmp_path, registry=registry, engine=engine, drain_timeout_s=1.0
    ) as service:
        engine.hold(after_tokens=2)
        streaming = asyncio.create_task(_stream(service.stub))
        await eventually(lambda: engine.unfinished() == 1, "the stream")
        assert await probes(service.channel) == (True, True, True)
        await service.server.grpc.refuse()
        assert await probes(service.channel) == (True, False, True)
        async with open_channel(service.server.address, [("grpc.enable_retries", 0)]) as channel:
            with pytest.raises(GraftError) as caught, rpc_errors("inference"):
                await InferenceServiceStub(channel).Generate(question("bot"))
        assert caught.value.reason is Reason.UNAVAILABLE
        assert caught.value.retry_after_s
        # One that never ends is cut when its time is over; the process does not wait for a kill.
        await asyncio.wait_for(service.server.stop(), 20)
        with pytest.raises(grpc.aio.AioRpcError):
            await streaming


async def test_a_replica_that_is_added_gets_requests_when_connections_are_old(
    tmp_path: Path, registry: MemoryRegistry
) -> None:
    """A connection ends after its time, and what was in flight on it goes on."""
    engine = FakeEngine()
    async with start_inference(
        tmp_path, registry=registry, engine=engine, max_connection_age_s=0.3
    ) as service:
        engine.hold(after_tokens=2)
        streaming = asyncio.create_task(_stream(service.stub))
        await eventually(lambda: engine.unfinished() == 1, "the stream")
        states: set[grpc.ChannelConnectivity] = set()

        async def left() -> bool:
            states.add(service.channel.get_state())
            return grpc.ChannelConnectivity.READY in states and len(states) > 1

        await eventually(left, "the end of the connection")
        await engine.release()
        assert (await streaming)[1]
        assert (await service.ask("bot")).text
