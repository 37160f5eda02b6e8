"""The service as a process: it says when it serves, and ends with 0 when it is told to."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from graft.channel import open_channel
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from tests.support.models import REPOSITORY
from tests.support.waiting import eventually


@asynccontextmanager
async def running(base: Path, folder: Path, **settings: object) -> AsyncIterator[Process]:
    """The service with the fake engine; what is left of it at the end is killed."""
    values = {"engine": "fake", "base": base, "data_dir": folder, **settings}
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "sdk"), str(REPOSITORY)]),
        **{f"GRAFT_INFERENCE_{name.upper()}": str(value) for name, value in values.items()},
    }
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.inference", env=env, cwd=folder, stderr=log
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ends_with(process: Process) -> int:
    process.send_signal(signal.SIGTERM)
    return await asyncio.wait_for(process.wait(), 20)


async def test_it_serves_the_base_alone_and_ends_with_0_on_sigterm(
    tiny_base: Path, tmp_path: Path
) -> None:
    ready = tmp_path / "ready.json"
    async with running(tiny_base, tmp_path, ready_file=ready) as process:
        await eventually(ready.exists, "serving", within_s=60)
        async with open_channel(json.loads(ready.read_bytes())["address"]) as channel:
            stub = InferenceServiceStub(channel)
            answer = await stub.Generate(pb.GenerateRequest(model="tiny", prompt="hello"))
            assert answer.provenance.base_fingerprint.startswith("sha256:")
        assert await ends_with(process) == 0


async def test_it_ends_with_0_on_sigterm_while_it_waits_for_the_registry(
    tiny_base: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with running(tiny_base, tmp_path, registry_address="127.0.0.1:1") as process:
        await eventually(lambda: b"waiting for the registry" in log.read_bytes(), "waiting", 60)
        assert await ends_with(process) == 0
