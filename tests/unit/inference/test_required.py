"""Readiness waits for the required models, and what is pinned never makes room."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from graft.channel import open_channel, rpc_errors
from graft.errors import GraftError, Reason
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from pydantic import ValidationError

from services.inference.config import InferenceSettings
from services.inference.engines.fake import FakeEngine
from services.inference.registry.memory import MemoryRegistry
from services.inference.server import InferenceServer
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


@pytest.fixture
async def registry() -> MemoryRegistry:
    registry = MemoryRegistry(FINGERPRINT)
    await registry.add_adapter(BOT, BASE)
    return registry


def settings(folder: Path, **values: object) -> InferenceSettings:
    return InferenceSettings(
        **{"base": Path("tiny"), "base_name": "tiny", "data_dir": folder, **values}  # type: ignore[arg-type]
    )


async def test_a_start_answers_probes_from_the_beginning_and_is_ready_at_its_end(
    tmp_path: Path, registry: MemoryRegistry
) -> None:
    engine, ready = FakeEngine(), tmp_path / "ready.json"
    engine.start_gate.clear()
    server = InferenceServer(
        settings(tmp_path, required=("bot",), ready_file=ready), engine=engine, registry=registry
    )
    starting = asyncio.create_task(server.start())
    try:
        await eventually(lambda: server.address != "", "the port")
        async with open_channel(server.address, [("grpc.enable_retries", 0)]) as channel:

            async def said(startup: bool, readiness: bool, liveness: bool) -> bool:
                return await probes(channel) == (startup, readiness, liveness)

            assert await said(False, False, True)
            stub = InferenceServiceStub(channel)
            with pytest.raises(GraftError, match="starting") as caught, rpc_errors("the service"):
                await stub.Generate(question("tiny"))
            assert caught.value.reason is Reason.UNAVAILABLE
            assert caught.value.retry_after_s
            engine.start_gate.set()
            await eventually(lambda: said(True, False, True), "the start's end")
            # Not ready for a balancer yet, but it serves who asks.
            assert (await stub.Generate(question("tiny"))).text
            assert not ready.exists()
            await registry.add_version(BOT, write_adapter(tmp_path / "one", "one"))
            await eventually(lambda: said(True, True, True), "readiness")
            await starting
            assert ready.exists()
            assert len(engine.loaded) == 1
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await server.stop()


async def test_a_required_version_that_fails_is_tried_again_and_a_moved_alias_helps(
    tmp_path: Path, registry: MemoryRegistry
) -> None:
    engine = FakeEngine()
    engine.load_failures.append(GraftError(Reason.ADAPTER_UNUSABLE, "bad tensors"))
    await registry.add_version(BOT, write_adapter(tmp_path / "one", "one"))
    await registry.set_alias(BOT, "canary", 1)
    server = InferenceServer(
        settings(tmp_path, required=("bot@canary",)), engine=engine, registry=registry
    )
    starting = asyncio.create_task(server.start())
    try:
        await eventually(lambda: not engine.load_failures, "the failure")
        await registry.add_version(BOT, write_adapter(tmp_path / "two", "two"))
        await registry.set_alias(BOT, "canary", 2)
        await asyncio.wait_for(starting, 20)
        assert len(engine.loaded) == 1
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await server.stop()


async def test_what_is_pinned_stays_under_pressure_and_its_pin_follows_the_alias(
    tmp_path: Path,
) -> None:
    async with start_inference(tmp_path, pinned=("bot",)) as service:

        async def pressure(name: str) -> None:
            for number in range(5):
                await service.publish(f"{name}-{number}", "x")
                await service.ask(f"{name}-{number}")

        def resident() -> set[str]:
            assert service.server.residency is not None
            return {each.version.name for each in service.server.residency.instances()}

        # No production alias, which would be preferred anyway: the newest version.
        (one,) = await service.publish("bot", "one")
        await service.ask("bot")
        await pressure("first")
        assert one.name in resident()
        (two,) = await service.publish("bot", "two")
        await eventually(lambda: two.name in resident(), "the move")
        await service.ask("bot")
        await pressure("second")
        assert two.name in resident()
        assert one.name not in resident()


@pytest.mark.parametrize("slots", [0, 1, 2])
def test_never_all_slots_are_pinned(tmp_path: Path, slots: int) -> None:
    with pytest.raises(ValidationError, match="max_adapters - 1") as caught:
        settings(tmp_path, max_adapters=slots, required=("bot",), pinned=("other", "bot"))
    assert "bot, other" in str(caught.value)
    settings(tmp_path, max_adapters=3, required=("bot",), pinned=("other", "bot"))


def test_a_reference_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="bot@"):
        settings(tmp_path, required=("bot@",))
