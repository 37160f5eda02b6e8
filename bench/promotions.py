"""100 promotions under 64 streams: what fails, what is mixed, what the swaps cost, and what stays in memory.

Calm windows and windows with promotions take turns on one endpoint, so a ratio is taken per round. Every
answer is compared, token by token, with what the version that it names answers when it is asked alone.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
import psutil
import uvloop
from graft.channel import open_channel
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from bench.harness import Report, summarize
from bench.processes import REPOSITORY, start_graft_service
from bench.swap import PROMPT, RANK, promote, publish

if TYPE_CHECKING:
    from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

STREAMS = 64
# Streams ask for different lengths, so that they do not all begin and end together.
LEAST_TOKENS, MOST_TOKENS = 16, 112
# The longest answers of a version that was replaced go on for a while.
SLOTS = 12
# More often than anybody promotes; two or three versions are on their way out at any time.
EVERY_S = 1.0
WANTED = 0.9
MODEL = "bench@production"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came, and the version and digest that it names."""

    version: str
    digest: str
    token_ids: tuple[int, ...]


@dataclass(slots=True)
class Tally:
    """What the load saw so far."""

    tokens: int = 0
    answers: list[Answer] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    _begun: defaultdict[str, asyncio.Event] = field(
        default_factory=lambda: defaultdict(asyncio.Event)
    )

    def begins(self, version: str) -> None:
        """It has given the first token of an answer."""
        self._begun[version].set()

    async def answers_by(self, version: str) -> None:
        """Waits until it has."""
        await self._begun[version].wait()


def run(*, short: bool = False, base: Path = REPOSITORY / "examples/base") -> Report:
    """Starts a registry and an inference service."""
    rounds, promotions = (2, 5) if short else (5, 20)
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as temporary:
        folder = Path(temporary)
        registry, registry_address = start_graft_service("registry", {}, folder / "registry")
        try:
            settings = {
                "base": base,
                "registry_address": registry_address,
                "max_adapters": SLOTS,
                "max_lora_rank": RANK,
                "max_model_len": 512,
                "max_num_seqs": STREAMS,
                # An answer must not depend on what else is in its batch.
                "dtype": "float32",
            }
            inference, address = start_graft_service("inference", settings, folder / "inference")
            try:
                promotions_under_load = PromotionsUnderLoad(inference.pid, rounds, promotions)
                return uvloop.run(
                    promotions_under_load.measure(registry_address, address, base, folder)
                )
            finally:
                inference.close()
        finally:
            registry.close()


class PromotionsUnderLoad:
    """One run.

    Args:
        pid: of the service; its engine is its child.
        rounds: each a calm window and one with promotions, of the same length.
        promotions: in each round.
    """

    def __init__(self, pid: int, rounds: int, promotions: int) -> None:
        self._service = psutil.Process(pid)
        self._rounds, self._promotions = rounds, promotions
        self._tally, self._version_mib = Tally(), 0.0

    async def measure(
        self, registry_address: str, address: str, base: Path, folder: Path
    ) -> Report:
        """Publishes all versions first; the load runs from the first window to the last."""
        count = self._rounds * self._promotions
        report = Report(
            "promotions",
            {
                "streams": STREAMS,
                "max_tokens": f"{LEAST_TOKENS} to {MOST_TOKENS}",
                "promotions": count,
                "one_every_s": EVERY_S,
                "slots": SLOTS,
                "dtype": "float32",
                "cores": os.cpu_count(),
            },
        )
        async with AsyncExitStack() as stack:
            registry = await stack.enter_async_context(open_channel(registry_address))
            channel = await stack.enter_async_context(open_channel(address))
            stub = InferenceServiceStub(channel)
            versions = await publish(registry, base, folder / "versions", count + 1)
            await promote(registry, versions[0])
            weights = folder / "versions/0/adapter_model.safetensors"
            self._version_mib = weights.stat().st_size / 2**20
            await self._under_load(report, registry, stub, versions)
            loaded = await _loaded(stub)
            wrong, different = await self._wrong(stub, versions)
        return self._judge(report, versions, loaded, wrong, different)

    async def _under_load(
        self,
        report: Report,
        registry: grpc.aio.Channel,
        stub: InferenceServiceAsyncStub,
        versions: list[str],
    ) -> None:
        stop = asyncio.Event()
        lengths = np.linspace(LEAST_TOKENS, MOST_TOKENS, STREAMS).astype(int).tolist()
        clients = [asyncio.create_task(self._client(stub, stop, each)) for each in lengths]
        fresh = iter(versions[1:])
        try:
            await self._window(registry, iter(()))
            for _ in range(self._rounds):
                calm = await self._window(registry, iter(()))
                swapping = await self._window(registry, islice(fresh, self._promotions))
                report.rounds.append(
                    {
                        "swapping": {"tokens_per_s": swapping} | self._memory(),
                        "calm": {"tokens_per_s": calm},
                    }
                )
                print(f"   promotions: {report.rounds[-1]}", flush=True)
        finally:
            stop.set()
            await asyncio.gather(*clients)
        summarize(report, ["swapping", "calm"])

    async def _window(self, registry: grpc.aio.Channel, fresh: Iterator[str]) -> float:
        """Tokens per second while so many promotions happen, or while they could."""
        tokens, began_s = self._tally.tokens, time.perf_counter()
        for number in range(self._promotions):
            version = next(fresh, "")
            if version:
                await promote(registry, version)
                async with asyncio.timeout(60):
                    await self._tally.answers_by(version)
            await asyncio.sleep(began_s + (number + 1) * EVERY_S - time.perf_counter())
        return (self._tally.tokens - tokens) / (time.perf_counter() - began_s)

    async def _client(
        self, stub: InferenceServiceAsyncStub, stop: asyncio.Event, max_tokens: int
    ) -> None:
        while not stop.is_set():
            await self._ask(stub, max_tokens)

    async def _ask(self, stub: InferenceServiceAsyncStub, max_tokens: int) -> None:
        tally, named, token_ids = self._tally, set(), list[int]()
        try:
            async for message in stub.StreamGenerate(_request(MODEL, max_tokens)):
                if message.provenance.version:
                    tally.begins(message.provenance.version)
                    named.add((message.provenance.version, message.provenance.version_digest))
                token_ids += message.token_ids
                tally.tokens += len(message.token_ids)
        except grpc.aio.AioRpcError as error:
            tally.failures[f"{error.code().name}: {error.details()}"] += 1
            return
        if len(named) != 1 or len(token_ids) != max_tokens:
            tally.failures[f"names {sorted(named)} and has {len(token_ids)} tokens"] += 1
            return
        (version, digest), *_ = named
        tally.answers.append(Answer(version, digest, tuple(token_ids)))

    async def _wrong(self, stub: InferenceServiceAsyncStub, versions: list[str]) -> tuple[int, int]:
        """Answers that are not their version's, and how many different answers the versions have."""
        expected: dict[str, tuple[str, tuple[int, ...]]] = {}
        for version in versions:
            number = version.rpartition("/")[2]
            alone = await stub.Generate(_request(f"bench:{number}", MOST_TOKENS))
            expected[version] = alone.provenance.version_digest, tuple(alone.token_ids)
        wrong = 0
        for answer in self._tally.answers:
            digest, token_ids = expected[answer.version]
            right = token_ids[: len(answer.token_ids)]
            wrong += answer.digest != digest or answer.token_ids != right
        return wrong, len({token_ids for _, token_ids in expected.values()})

    def _memory(self) -> dict[str, float]:
        """MiB that no other process has, of the service and of its engine, where the weights are."""
        engine = [each.memory_full_info().uss for each in self._service.children(recursive=True)]
        return {
            "engine_mib": sum(engine) / 2**20,
            "service_mib": self._service.memory_full_info().uss / 2**20,
        }

    def _judge(
        self, report: Report, versions: list[str], loaded: list[str], wrong: int, different: int
    ) -> Report:
        tally = self._tally
        served = len({answer.version for answer in tally.answers})
        failed = sum(tally.failures.values())
        report.settings |= {
            "requests": len(tally.answers) + failed,
            "failures": dict(tally.failures),
            "versions_that_answered": served,
            "versions_that_differ": different,
            "loaded_at_the_end": loaded,
        }
        kept = report.ratios["swapping / calm"]["tokens_per_s"].median
        report.goal("tokens/s, swapping / calm", f"at least {WANTED}", kept, kept >= WANTED)
        report.goal("failed requests", "0", failed, failed == 0)
        report.goal("answers that are not their version's", "0", wrong, wrong == 0)
        grown = [each["swapping"]["engine_mib"] for each in report.rounds]
        growth_mib = grown[-1] - grown[0]
        most_mib = self._version_mib * self._promotions * (self._rounds - 1)
        report.goal(
            "growth of the engine's memory after the first round, MiB",
            f"below {most_mib:.0f}, what its versions weigh",
            growth_mib,
            growth_mib < most_mib,
        )
        alone = loaded == versions[-1:]
        report.goal("versions loaded at the end", "1, the last", len(loaded), alone)
        return report


async def _loaded(stub: InferenceServiceAsyncStub) -> list[str]:
    """What the engine holds, once those that drain are gone."""
    async with asyncio.timeout(30):
        while True:
            residency = await stub.GetResidency(pb.GetResidencyRequest())
            if all(each.state == pb.RESIDENCY_STATE_READY for each in residency.adapters):
                return [each.version for each in residency.adapters]
            await asyncio.sleep(0.1)


def _request(model: str, max_tokens: int) -> pb.GenerateRequest:
    sampling = pb.SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    return pb.GenerateRequest(model=model, prompt=PROMPT, sampling=sampling)
