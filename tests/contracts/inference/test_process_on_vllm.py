"""The service with its real engine as processes, told to end."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import pytest_asyncio
from graft.channel import open_channel
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from tests.support.inference import question
from tests.support.inference_process import exit_code, inference_process
from tests.support.traces import Receiver, one, otlp_receiver
from tests.support.waiting import eventually

if TYPE_CHECKING:
    import grpc
    from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

pytestmark = pytest.mark.engine
CALL = "graft.inference.v1.InferenceService/StreamGenerate"
LONG: dict[str, Any] = {"max_tokens": 800, "ignore_eos": True}


@dataclass(frozen=True, slots=True)
class Serving:
    """A process that serves, a channel to it, and its log."""

    process: Process
    channel: grpc.aio.Channel
    log: Path


@asynccontextmanager
async def serving(base: Path, folder: Path) -> AsyncIterator[Serving]:
    """The example base alone on real vLLM."""
    ready = folder / "ready.json"
    settings = {"max_adapters": 0, "enforce_eager": True, "max_num_seqs": 8, "base_name": "tiny"}
    async with inference_process(base, folder, ready_file=ready, **settings) as process:
        ended = asyncio.ensure_future(process.wait())
        await eventually(lambda: ready.exists() or ended.done(), "serving", within_s=120)
        assert not ended.done(), (folder / "log").read_text()
        async with open_channel(json.loads(ready.read_bytes())["address"]) as channel:
            yield Serving(process, channel, folder / "log")


@pytest_asyncio.fixture
async def service(example_base: Path, tmp_path: Path) -> AsyncIterator[Serving]:
    """One for each test, one after the other: side by side on two cores takes longer."""
    async with serving(example_base, tmp_path) as running:
        yield running


@pytest_asyncio.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Receiver]:
    """Where the services of a test send their spans; asked for before the service."""
    async with otlp_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
        yield receiver


def children(process: Process) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    return found


async def assert_gone(processes: list[psutil.Process]) -> None:
    assert processes
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout=60)
    assert not alive


async def test_on_sigterm_what_is_in_flight_ends_whole_with_its_trace_and_nothing_is_left_behind(
    collector: Receiver,
    service: Serving,
) -> None:
    process, channel = service.process, service.channel
    stub: InferenceServiceAsyncStub = InferenceServiceStub(channel)
    call = aiter(stub.StreamGenerate(question("tiny", "hello", **LONG)))
    parts = [await anext(call)]
    started = children(process)
    ending = asyncio.ensure_future(exit_code(process))
    await eventually(lambda: b"draining" in service.log.read_bytes(), "the drain")
    in_time = len(parts)
    parts += [part async for part in call]
    assert len(parts) > in_time
    assert sum(len(part.token_ids) for part in parts) == LONG["max_tokens"]
    assert parts[-1].finish_reason == pb.FINISH_REASON_LENGTH
    assert await ending == 0
    await assert_gone(started)
    spans = [span for span in collector.spans() if span.service == "graft-inference"]
    generation = one(spans, "generation")
    assert one(spans, "llm_request").parent == generation.span
    assert generation.parent == one(spans, CALL).span
