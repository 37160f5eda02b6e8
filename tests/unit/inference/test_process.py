"""The service as a process: it says when it serves, and ends with 0 when it is told to."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from graft.channel import open_channel
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from tests.support.models import REPOSITORY
from tests.support.waiting import eventually


async def test_it_serves_the_base_alone_and_ends_with_0_on_sigterm(
    tiny_base: Path, tmp_path: Path
) -> None:
    ready = tmp_path / "ready.json"
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "sdk"), str(REPOSITORY)]),
        "GRAFT_INFERENCE_ENGINE": "fake",
        "GRAFT_INFERENCE_BASE": str(tiny_base),
        "GRAFT_INFERENCE_DATA_DIR": str(tmp_path),
        "GRAFT_INFERENCE_READY_FILE": str(ready),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.inference", env=env, cwd=tmp_path
    )
    try:
        await eventually(ready.exists, "serving", within_s=60)
        async with open_channel(json.loads(ready.read_bytes())["address"]) as channel:
            stub = InferenceServiceStub(channel)
            answer = await stub.Generate(pb.GenerateRequest(model="tiny", prompt="hello"))
            assert answer.provenance.base_fingerprint.startswith("sha256:")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
