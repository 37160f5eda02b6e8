"""Promotions under load: from SetAlias to the first token of the new version, on a real registry and engine.

Every version has fresh weights that are not in the engine's disk cache. Each answer must equal what the
version that it names answers; one that fails or does not is counted, and the goal is none.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
import uvloop
from graft.bases import read_base
from graft.blobs import BlobClient, describe_file
from graft.channel import open_channel
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from graft.registry.v1 import registry_service_pb2 as registry_pb
from graft.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from safetensors.numpy import save_file

from bench.harness import Report, Summary
from bench.processes import REPOSITORY, start_graft_service

if TYPE_CHECKING:
    from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

ADAPTER = "namespaces/default/adapters/bench"
PRODUCTION = f"{ADAPTER}/aliases/production"
STREAMS = 16
# Streams ask for different lengths, so that they do not all begin and end together.
LEAST_TOKENS, MOST_TOKENS = 12, 42
PROMPT = "The cat sees a red house and asks"
RANK = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, the version that it names, and how many tokens were asked for."""

    version: str
    max_tokens: int
    text: str
    seconds: float


@dataclass(slots=True)
class Tally:
    """What the load saw."""

    answers: list[Answer] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    first_seen_s: dict[str, float] = field(default_factory=dict)
    seen: asyncio.Condition = field(default_factory=asyncio.Condition)


def run(*, short: bool = False, base: Path = REPOSITORY / "examples/base") -> Report:
    """Starts a registry and an inference service, and promotes versions while streams run."""
    swaps, least = (5, 200) if short else (20, 1000)
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as temporary:
        folder = Path(temporary)
        registry, registry_address = start_graft_service("registry", {}, folder / "registry")
        try:
            settings = {
                "base": base,
                "registry_address": registry_address,
                "max_adapters": 4,
                "max_lora_rank": RANK,
                "max_model_len": 512,
                "max_num_seqs": STREAMS + 4,
                # An answer must not depend on what else is in its batch.
                "dtype": "float32",
            }
            inference, address = start_graft_service("inference", settings, folder / "inference")
            try:
                work = _measure(registry_address, address, base, folder, swaps, least)
                return uvloop.run(work)
            finally:
                inference.close()
        finally:
            registry.close()


async def _measure(
    registry_address: str, address: str, base: Path, folder: Path, swaps: int, least: int
) -> Report:
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(open_channel(registry_address))
        inference = await stack.enter_async_context(open_channel(address))
        versions = await publish(registry, base, folder / "versions", swaps + 1)
        stub, tally = InferenceServiceStub(inference), Tally()
        await promote(registry, versions[0])
        stop = asyncio.Event()
        lengths = np.linspace(LEAST_TOKENS, MOST_TOKENS, STREAMS).astype(int).tolist()
        clients = [asyncio.create_task(_client(stub, tally, stop, each)) for each in lengths]
        try:
            milliseconds = []
            for number, version in enumerate(versions[1:], start=1):
                await _until(tally, least * number // len(versions))
                milliseconds.append(await _swap(registry, stub, tally, version))
            await _until(tally, least)
        finally:
            stop.set()
            await asyncio.gather(*clients)
        mixed = await _mixed(stub, tally)
        assert set(tally.first_seen_s) == set(versions)
    return _report(milliseconds, tally, mixed)


async def _client(
    stub: InferenceServiceAsyncStub, tally: Tally, stop: asyncio.Event, max_tokens: int
) -> None:
    while not stop.is_set():
        await _ask(stub, tally, max_tokens)


async def _ask(stub: InferenceServiceAsyncStub, tally: Tally, max_tokens: int) -> None:
    began_s, version, text = time.perf_counter(), "", ""
    try:
        async for message in stub.StreamGenerate(_request("bench@production", max_tokens)):
            if not version:
                version = message.provenance.version
                if version not in tally.first_seen_s:
                    tally.first_seen_s[version] = time.perf_counter()
                    await _tell(tally)
            text += message.text
            if message.finish_reason and message.provenance.version != version:
                tally.failures["provenance changed"] += 1
    except grpc.aio.AioRpcError as error:
        tally.failures[f"{error.code().name}: {error.details()}"] += 1
        return
    tally.answers.append(Answer(version, max_tokens, text, time.perf_counter() - began_s))
    if len(tally.answers) % 50 == 0:
        await _tell(tally)


async def _tell(tally: Tally) -> None:
    async with tally.seen:
        tally.seen.notify_all()


async def _swap(
    registry: grpc.aio.Channel, stub: InferenceServiceAsyncStub, tally: Tally, version: str
) -> float:
    """Milliseconds from the promotion until somebody who asks all the time has the first new token."""
    began_s = time.perf_counter()
    await promote(registry, version)
    while version not in tally.first_seen_s:
        await _ask(stub, tally, 1)
    return 1000 * (tally.first_seen_s[version] - began_s)


async def _until(tally: Tally, answers: int) -> None:
    async with asyncio.timeout(300), tally.seen:
        await tally.seen.wait_for(lambda: len(tally.answers) >= answers)


async def _mixed(stub: InferenceServiceAsyncStub, tally: Tally) -> int:
    """Answers that are not what their version answers when it is asked alone."""
    expected: dict[tuple[str, int], str] = {}
    mixed = 0
    for answer in tally.answers:
        key = answer.version, answer.max_tokens
        if key not in expected:
            number = answer.version.rpartition("/")[2]
            request = _request(f"bench:{number}", answer.max_tokens)
            expected[key] = (await stub.Generate(request)).text
        mixed += answer.text != expected[key]
    return mixed


def _request(model: str, max_tokens: int) -> pb.GenerateRequest:
    sampling = pb.SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    return pb.GenerateRequest(model=model, prompt=PROMPT, sampling=sampling)


async def promote(channel: grpc.aio.Channel, version: str) -> None:
    """Moves the production alias."""
    await RegistryServiceStub(channel).SetAlias(
        registry_pb.SetAliasRequest(name=PRODUCTION, version=version, reason="bench")
    )


async def publish(channel: grpc.aio.Channel, base: Path, folder: Path, count: int) -> list[str]:
    """Commits so many versions of random weights; their names."""
    stub, blobs = RegistryServiceStub(channel), BlobClient(channel)
    described = read_base(base, f"namespaces/default/bases/{base.name}")
    adapter = registry_pb.Adapter(name=ADAPTER, base=described.name)
    await stub.CreateAdapter(registry_pb.CreateAdapterRequest(adapter=adapter))
    names = []
    for seed in range(count):
        version = write_adapter(folder / str(seed), described, seed)
        files = [describe_file(version, path) for path in sorted(version.iterdir())]
        for file in files:
            await blobs.upload(version / file.path, file)
        committed = await stub.CommitVersion(
            registry_pb.CommitVersionRequest(
                parent=ADAPTER,
                files=files,
                base_fingerprint=described.fingerprint.digest,
                request_id=f"bench-{seed}",
            )
        )
        names.append(committed.name)
    return names


def write_adapter(folder: Path, base: registry_pb.Base, seed: int) -> Path:
    """LoRA of random weights on every linear layer, large enough to change answers."""
    folder.mkdir(parents=True)
    draw, tensors, targets = np.random.default_rng(seed), {}, set()
    for module in base.modules:
        if not module.path.endswith("_proj"):
            continue
        targets.add(module.path.rpartition(".")[2])
        prefix = f"base_model.model.{module.path}"
        down = draw.normal(0, 0.1, (RANK, module.in_features))
        up = draw.normal(0, 0.1, (module.out_features, RANK))
        tensors[f"{prefix}.lora_A.weight"] = down.astype(np.float32)
        tensors[f"{prefix}.lora_B.weight"] = up.astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    names = ", ".join(f'"{name}"' for name in sorted(targets))
    (folder / "adapter_config.json").write_text(
        f'{{"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": {RANK}, "lora_alpha": {RANK},'
        f' "lora_dropout": 0.0, "bias": "none", "target_modules": [{names}]}}'
    )
    return folder


def _report(milliseconds: list[float], tally: Tally, mixed: int) -> Report:
    answers, failed = len(tally.answers), sum(tally.failures.values())
    report = Report(
        "swap",
        {
            "streams": STREAMS,
            "max_tokens": f"{LEAST_TOKENS} to {MOST_TOKENS}",
            "swaps": len(milliseconds),
            "requests": answers + failed,
            "cores": os.cpu_count(),
            "failures": dict(tally.failures),
        },
    )
    seconds = [answer.seconds for answer in tally.answers if answer.max_tokens > 1]
    report.figures["graft"] = {
        "promote_to_first_token_ms": Summary.of(milliseconds),
        "answer_s": Summary.of(seconds),
        "failed": Summary.of([failed]),
        "mixed": Summary.of([mixed]),
    }
    report.rounds = [{"graft": {"promote_to_first_token_ms": each}} for each in milliseconds]
    median = Summary.of(milliseconds).median
    report.goal("promote to first token, median", "at most 250 ms", median, median <= 250)
    report.goal("failed requests", "0", failed, failed == 0)
    report.goal("mixed answers", "0", mixed, mixed == 0)
    return report
