"""The engine dies: only what was on it fails, the service starts it anew, and all it held comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc import error_details_pb2
from graft.channel import rpc_errors
from graft.errors import GraftError, Reason, from_rpc_error
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from grpc_status import rpc_status

from services.inference.engines.base import EngineAdapter
from services.inference.server import SERVICE
from tests.support.health import health, probes
from tests.support.inference import RunningInference, question, start_inference
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub


@asynccontextmanager
async def once(service: RunningInference) -> AsyncIterator[InferenceServiceAsyncStub]:
    """A client that tries nothing again by itself."""
    options = [("grpc.enable_retries", 0)]
    async with grpc.aio.insecure_channel(service.server.address, options) as channel:
        yield InferenceServiceStub(channel)


def names(service: RunningInference) -> list[str]:
    """What is on the engine, by what decides its answers, in the order of loading."""
    return list(service.fake.loaded.values())


async def test_only_what_was_on_the_engine_fails_and_says_when_to_try_again(
    service: RunningInference,
) -> None:
    await service.publish("bot", "one")
    expected = (await service.ask("bot")).text
    service.fake.hold(after_tokens=2)
    service.fake.start_gate.clear()
    async with once(service) as stub:
        on_it = [aiter(stub.StreamGenerate(question(model))) for model in ("bot", "tiny")]
        for call in on_it:
            await anext(call)
        service.fake.die()
        for call in on_it:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                [part async for part in call]
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert from_rpc_error(caught.value).reason is Reason.ENGINE_DEAD
            assert _retry_delay_s(caught.value) > 0
        await service.fake.release()
        meanwhile = [asyncio.ensure_future(stub.Generate(question("bot"))) for _ in range(5)]
        await asyncio.sleep(0)
        service.fake.start_gate.set()
        assert {answer.text for answer in await asyncio.gather(*meanwhile)} == {expected}


async def test_who_comes_meanwhile_waits_for_a_bounded_time(tmp_path: Path) -> None:
    async with start_inference(tmp_path, engine_wait_s=0.1) as service, once(service) as stub:
        service.fake.start_gate.clear()
        service.fake.die()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(question("tiny"))
        assert from_rpc_error(caught.value).reason is Reason.ENGINE_DEAD
        assert _retry_delay_s(caught.value) > 0


async def test_no_more_wait_than_may(tmp_path: Path) -> None:
    async with start_inference(tmp_path, max_waiting=2) as service, once(service) as stub:
        service.fake.start_gate.clear()
        service.fake.die()
        calls = [asyncio.ensure_future(stub.Generate(question("tiny"))) for _ in range(3)]
        done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = done
        error = refused.exception()
        assert isinstance(error, grpc.aio.AioRpcError)
        assert from_rpc_error(error).reason is Reason.ENGINE_DEAD
        service.fake.start_gate.set()
        assert all(await asyncio.gather(*waiting))


async def test_the_required_come_back_first_then_production_then_the_last_used(
    tmp_path: Path,
) -> None:
    async with start_inference(tmp_path / "first") as first:
        for adapter in ("old", "new", "prod", "must"):
            await first.publish(adapter, adapter)
        await first.promote("prod", 1)
        async with start_inference(
            tmp_path / "second", registry=first.registry, required=("must",)
        ) as service:
            for model in ("prod", "old", "new"):
                await service.ask(model)
            held = set(names(service))
            assert len(held) == 4
            service.fake.die()
            assert not service.fake.loaded
            await eventually(lambda: set(names(service)) == held, "the replay")
            order = [(await service.ask(each)).provenance.version for each in ("must", "prod")]
            loaded = await service_order(service)
            assert loaded[:2] == order
            assert [each.split("/")[3] for each in loaded[2:]] == ["new", "old"]


async def service_order(service: RunningInference) -> list[str]:
    """Versions in the order in which they were loaded."""
    assert service.server.residency is not None
    return [
        each.version.name
        for each in sorted(service.server.residency.instances(), key=lambda each: each.number)
    ]


async def test_probes_tell_startup_readiness_and_liveness_apart(
    service: RunningInference,
) -> None:
    assert await probes(service.channel) == (True, True, True)
    service.fake.start_gate.clear()
    service.fake.die()

    async def not_ready() -> bool:
        return await probes(service.channel) == (True, False, True)

    await eventually(not_ready, "not ready, and alive")
    assert not await health(service.channel)
    assert not await health(service.channel, SERVICE)
    service.fake.start_gate.set()

    async def ready() -> bool:
        return await probes(service.channel) == (True, True, True)

    await eventually(ready, "ready again")
    assert await health(service.channel, SERVICE)


async def test_after_a_death_readiness_waits_for_the_required_again(tmp_path: Path) -> None:
    async with start_inference(tmp_path / "first") as first:
        await first.publish("bot", "one")
        async with start_inference(
            tmp_path / "second", registry=first.registry, required=("bot",)
        ) as service:
            service.fake.load_gate.clear()
            service.fake.die()
            await eventually(lambda: service.fake.loading == 1, "the load")
            assert await probes(service.channel) == (True, False, True)
            # It serves already who needs nothing else.
            assert (await service.ask("tiny")).text
            service.fake.load_gate.set()

            async def ready() -> bool:
                return await health(service.channel, "readiness")

            await eventually(ready, "readiness")
            assert len(service.fake.loaded) == 1


async def test_a_required_version_that_does_not_come_back_keeps_no_other_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start_inference(tmp_path / "first") as first:
        for adapter in ("must", "other"):
            await first.publish(adapter, adapter)
        async with start_inference(
            tmp_path / "second",
            registry=first.registry,
            required=("must",),
            retry_failed_after_s=0.1,
        ) as service:
            await service.ask("other")
            load, mended = service.fake.load, asyncio.Event()

            async def load_or_not(adapter: EngineAdapter) -> None:
                if adapter.name.startswith("must@") and not mended.is_set():
                    raise GraftError(Reason.ADAPTER_UNUSABLE, "rotten")
                await load(adapter)

            monkeypatch.setattr(service.fake, "load", load_or_not)
            service.fake.die()
            await eventually(lambda: len(service.fake.loaded) == 1, "the other one")
            assert not await health(service.channel, "readiness")
            mended.set()

            async def ready() -> bool:
                return await health(service.channel, "readiness")

            await eventually(ready, "readiness")
            assert len(service.fake.loaded) == 2


async def test_loads_wait_for_a_dead_engine_side_by_side(tmp_path: Path) -> None:
    async with start_inference(tmp_path) as service:
        for adapter in "abcd":
            await service.publish(adapter, adapter)
        service.fake.load_gate.clear()
        async with once(service) as stub:
            calls = [asyncio.ensure_future(stub.Generate(question(each))) for each in "abcd"]
            await eventually(lambda: service.fake.loading == 1, "a load")
            service.fake.start_gate.clear()
            service.fake.die()
            service.fake.load_gate.set()
            # The one that was being loaded has failed with the engine.
            await eventually(lambda: service.server.gate.waiting == 3, "the other three")
            service.fake.start_gate.set()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            failed = [each for each in answers if isinstance(each, BaseException)]
            assert len(failed) == 1


async def test_an_engine_that_does_not_start_is_tried_again_and_at_last_not_alive(
    tmp_path: Path,
) -> None:
    async with start_inference(
        tmp_path,
        engine_restart_delay_s=0.01,
        engine_restart_max_s=0.02,
        engine_restart_limit=3,
    ) as service:
        # It fails until somebody has seen that there is no hope.
        failures = service.fake.start_failures
        failures += [RuntimeError("no memory")] * 100_000

        async def hopeless() -> bool:
            return not await health(service.channel, "liveness")

        service.fake.die()
        await eventually(hopeless, "no hope")
        tries = service.fake.starts - 1
        assert tries >= 3
        failures.clear()

        async def well() -> bool:
            return await probes(service.channel) == (True, True, True)

        await eventually(well, "hope again")
        assert service.fake.starts == 1 + tries + 1
        assert (await service.ask("tiny")).text


async def test_a_version_that_the_engine_died_of_is_not_loaded_again_at_once(
    service: RunningInference,
) -> None:
    await service.publish("good", "one")
    await service.publish("deadly", "two")
    await service.ask("good")
    service.fake.load_gate.clear()
    async with once(service) as stub:
        call = asyncio.ensure_future(stub.Generate(question("deadly")))
        await eventually(lambda: service.fake.loading == 1, "the load")
        service.fake.die()
        service.fake.load_gate.set()
        with pytest.raises(GraftError) as caught, rpc_errors("the service"):
            await call
        assert caught.value.reason is Reason.ENGINE_DEAD
        with pytest.raises(GraftError, match="died while it loaded"), rpc_errors("the service"):
            await stub.Generate(question("deadly"))
        assert (await stub.Generate(question("good"))).text
    assert service.fake.starts == 2


async def test_it_may_die_again_while_it_is_brought_back(service: RunningInference) -> None:
    for adapter in ("a", "b", "c"):
        await service.publish(adapter, adapter)
        await service.ask(adapter)
    held = set(names(service))
    service.fake.load_gate.clear()
    service.fake.die()
    await eventually(lambda: service.fake.loading == 1, "the replay")
    service.fake.die()
    service.fake.load_gate.set()
    # The one that it died of is suspect.
    await eventually(lambda: len(service.fake.loaded) == 2, "the other two")
    assert set(names(service)) < held
    assert service.fake.starts == 3


def _retry_delay_s(error: grpc.aio.AioRpcError) -> float:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    info = error_details_pb2.RetryInfo()
    (packed,) = [each for each in status.details if each.Is(info.DESCRIPTOR)]
    packed.Unpack(info)
    return info.retry_delay.ToTimedelta().total_seconds()
