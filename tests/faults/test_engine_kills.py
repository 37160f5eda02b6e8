"""kill -9 of the real engine under a service that is a process of its own, with a real registry beside it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from graft.channel import rpc_errors
from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from tests.support.engines import engine_cores
from tests.support.health import probes
from tests.support.inference import question
from tests.support.inference_process import inference_process
from tests.support.models import make_adapter
from tests.support.registry import registry_calls, running_registry
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

pytestmark = pytest.mark.engine
ADAPTERS = ("bot", "other")
# Tens of seconds of work: none is done when the engine is killed.
LONG: dict[str, Any] = {"max_tokens": 7500, "ignore_eos": True}


async def test_only_what_was_on_a_killed_engine_fails_and_the_service_is_whole_again_by_itself(
    tmp_path: Path, tiny_base: Path
) -> None:
    ready = tmp_path / "ready.json"
    async with (
        running_registry(tmp_path / "registry") as registry,
        registry_calls(registry.address) as calls,
    ):
        base = await calls.create_base(tiny_base)
        for seed, adapter in enumerate(ADAPTERS):
            await calls.create_adapter(adapter)
            folder = make_adapter(tmp_path / adapter, tiny_base, seed=seed)
            version = await calls.commit(folder, base.fingerprint.digest, adapter)
            await calls.set_alias(version.name)
        async with inference_process(
            tiny_base,
            tmp_path,
            ready_file=ready,
            registry_address=registry.address,
            base_name="tiny",
            max_adapters=2,
            max_lora_rank=16,
            max_model_len=8192,
            max_num_seqs=8,
            dtype="float32",
            enforce_eager=True,
            required='["bot"]',
            engine_wait_s=120,
        ) as process:
            ended = asyncio.ensure_future(process.wait())
            await eventually(lambda: ready.exists() or ended.done(), "serving", within_s=120)
            assert not ended.done(), (tmp_path / "log").read_text()
            address = json.loads(ready.read_bytes())["address"]
            async with grpc.aio.insecure_channel(address, [("grpc.enable_retries", 0)]) as channel:
                await _kill_and_see(channel, process.pid)
            # Nor does it leave an engine behind when it is killed itself.
            (core,) = engine_cores(process.pid)
            process.kill()
            await eventually(lambda: not core.is_running(), "the engine's end")


async def _kill_and_see(channel: grpc.aio.Channel, pid: int) -> None:
    stub: InferenceServiceAsyncStub = InferenceServiceStub(channel)
    models = ("tiny", *ADAPTERS)
    expected = [(await stub.Generate(question(model))).text for model in models]
    assert len(set(expected)) == 3
    held = await _resident(stub)
    assert len(held) == 2
    (core,) = engine_cores(pid)  # Before they begin: to look takes as long as an answer.
    on_it = [aiter(stub.StreamGenerate(question(model, **LONG))) for model in models]
    await asyncio.gather(*(anext(call) for call in on_it))
    core.kill()
    for call in on_it:
        error = await _failure(call)
        assert error.reason is Reason.ENGINE_DEAD
        assert error.code is grpc.StatusCode.UNAVAILABLE
        assert error.retry_after_s

    async def says(startup: bool, readiness: bool, liveness: bool) -> bool:
        return await probes(channel) == (startup, readiness, liveness)

    await eventually(lambda: says(True, False, True), "not ready, and alive")
    meanwhile = asyncio.gather(*(stub.Generate(question(model)) for model in models))
    assert [answer.text for answer in await asyncio.wait_for(meanwhile, 120)] == expected
    await eventually(lambda: says(True, True, True), "ready again", within_s=60)

    async def back() -> bool:
        return await _resident(stub) == held

    await eventually(back, "what was resident")
    (other,) = engine_cores(pid)
    assert other.pid != core.pid


async def _resident(stub: InferenceServiceAsyncStub) -> set[str]:
    answer = await stub.GetResidency(pb.GetResidencyRequest())
    return {each.version for each in answer.adapters if each.state == pb.RESIDENCY_STATE_READY}


async def _failure(call: AsyncIterator[pb.GenerateResponse]) -> GraftError:
    with pytest.raises(GraftError) as caught, rpc_errors("the service"):
        await asyncio.wait_for(_rest(call), 30)
    return caught.value


async def _rest(call: AsyncIterator[pb.GenerateResponse]) -> None:
    async for _ in call:
        pass
