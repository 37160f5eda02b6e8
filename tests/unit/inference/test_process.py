"""The service as a process: it says when it serves, and ends with 0 when it is told to."""

from __future__ import annotations

import json
from pathlib import Path

from graft.channel import open_channel
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from tests.support.inference_process import exit_code, inference_process
from tests.support.waiting import eventually


async def test_it_serves_the_base_alone_and_ends_with_0_on_sigterm(
    tiny_base: Path, tmp_path: Path
) -> None:
    ready = tmp_path / "ready.json"
    async with inference_process(tiny_base, tmp_path, engine="fake", ready_file=ready) as process:
        await eventually(ready.exists, "serving", within_s=60)
        async with open_channel(json.loads(ready.read_bytes())["address"]) as channel:
            stub = InferenceServiceStub(channel)
            answer = await stub.Generate(pb.GenerateRequest(model="tiny", prompt="hello"))
            assert answer.provenance.base_fingerprint.startswith("sha256:")
        assert await exit_code(process) == 0


async def test_it_ends_with_0_on_sigterm_while_it_waits_for_the_registry(
    tiny_base: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with inference_process(
        tiny_base, tmp_path, engine="fake", registry_address="127.0.0.1:1"
    ) as process:
        await eventually(lambda: b"waiting for the registry" in log.read_bytes(), "waiting", 60)
        assert await exit_code(process) == 0
