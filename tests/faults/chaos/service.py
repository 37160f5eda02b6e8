"""Our service on a real engine, behind a registry that admits everything, and innocents who use it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from graft.channel import rpc_errors
from graft.errors import GraftError
from graft.inference.v1 import inference_service_pb2 as pb

from services.inference.domain import AdapterVersion
from services.inference.registry.memory import MemoryRegistry
from tests.support.engines import SharedEngine
from tests.support.inference import (
    BASE,
    FINGERPRINT,
    RunningInference,
    adapter_resource,
    start_inference,
)
from tests.support.models import make_adapter
from tests.support.waiting import eventually

SHORT = tuple(3 + 11 * place % 500 for place in range(12))
# Longer than a block of the prefix cache (128 tokens on a CPU), so that a stale one would show.
LONG = tuple(3 + 7 * place % 500 for place in range(150))
ANSWER_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer, and the version that says it made it."""

    tokens: tuple[int, ...]
    text: str
    version: str


@dataclass(slots=True)
class Chaos:
    """What the cases do with the service."""

    running: RunningInference
    engine: SharedEngine
    base: Path
    folder: Path
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    def fresh(self, seed: int, **changes: Any) -> Path:
        """A right adapter of random weights from a seed, in a folder of its own."""
        path = self.folder / f"made-{next(self._numbers)}"
        return make_adapter(path, self.base, seed=seed, **changes)

    async def add(self, adapter: str, folder: Path, **fields: Any) -> AdapterVersion:
        """Commits a folder as the adapter's next version, whatever is in it."""
        name = adapter_resource(adapter)
        if name not in self.running.memory.adapters:
            await self.running.memory.add_adapter(name, BASE)
        return await self.running.memory.add_version(name, folder, **fields)

    async def ask(
        self, model: str, prompt: tuple[int, ...] = SHORT, tokens: int = ANSWER_TOKENS
    ) -> Heard:
        """A whole answer; errors are raised as GraftError."""
        with rpc_errors("the service"):
            answer = await self.running.stub.Generate(asked(model, prompt, tokens))
        return Heard(tuple(answer.token_ids), answer.text, answer.provenance.version)

    @asynccontextmanager
    async def answering(
        self, model: str, prompt: tuple[int, ...] = SHORT, tokens: int = 100
    ) -> AsyncIterator[asyncio.Task[Heard]]:
        """A long answer that has begun; await it to have all of it."""
        begun = asyncio.Event()
        task = asyncio.create_task(self._stream(asked(model, prompt, tokens), begun))
        first = asyncio.create_task(begun.wait())
        await asyncio.wait([task, first], return_when=asyncio.FIRST_COMPLETED)
        first.cancel()
        try:
            yield task
            await task
        finally:
            task.cancel()

    async def _stream(self, request: pb.GenerateRequest, begun: asyncio.Event) -> Heard:
        tokens: list[int] = []
        text, version = "", ""
        with rpc_errors("the service"):
            async for part in self.running.stub.StreamGenerate(request):
                tokens += part.token_ids
                text += part.text
                version = part.provenance.version or version
                begun.set()
        return Heard(tuple(tokens), text, version)

    async def refusal(self, model: str) -> GraftError:
        """Why a model is not served; it fails when it is, or when the error helps nobody."""
        with pytest.raises(GraftError) as caught:
            await self.ask(model)
        assert caught.value.next_step, f"{model}: {caught.value} has no next step"
        return caught.value

    async def holds_only(self, *adapters: str) -> None:
        """Waits until the service and vLLM itself hold these adapters, each once, and nothing else."""

        async def so() -> bool:
            held = sorted(each.name.partition("@")[0] for each in self.engine.loaded)
            numbers = {each.number for each in self.engine.loaded}
            return held == sorted(adapters) and await self.engine.listed() == numbers

        await eventually(so, f"nothing but {adapters} on the engine")

    async def residency(self) -> dict[str, str]:
        """What the service says of each version: its state by its name."""
        answer = await self.running.stub.GetResidency(pb.GetResidencyRequest())
        return {
            each.version: pb.ResidencyState.Name(each.state).removeprefix("RESIDENCY_STATE_")
            for each in answer.adapters
        }

    def metric(self, name: str, **labels: str) -> float | None:
        """A figure of the service; None where there is no such series."""
        return self.running.server.metrics_registry.get_sample_value(
            f"graft_inference_{name}", labels
        )


def asked(model: str, prompt: tuple[int, ...], tokens: int) -> pb.GenerateRequest:
    """Greedy, and of exactly so many tokens, so that answers can be compared."""
    return pb.GenerateRequest(
        model=model,
        prompt_token_ids=pb.TokenIds(ids=prompt),
        sampling=pb.SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True),
    )


class Innocents:
    """Callers who ask for good names all the time, and must hear to the byte what they heard in quiet."""

    def __init__(self, chaos: Chaos, models: Collection[str]) -> None:
        self._chaos = chaos
        self._questions = [(model, prompt) for model in models for prompt in (SHORT, LONG)]
        self._expected: dict[tuple[str, tuple[int, ...]], Heard] = {}
        self._done = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.answers = 0
        self.wrong: list[str] = []

    async def __aenter__(self) -> Self:
        for question in self._questions:
            self._expected[question] = await self._chaos.ask(*question)
        self._tasks = [
            asyncio.create_task(self._keep_asking(*question)) for question in self._questions
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            await self.hear_more()
        self._done.set()
        await asyncio.gather(*self._tasks)
        if kind is None:
            assert not self.wrong, f"{len(self.wrong)} innocent answers: {self.wrong[0]}"
            assert self.answers

    async def hear_more(self, rounds: int = 1) -> None:
        """Returns when each of them has heard so many more answers."""
        wanted = self.answers + (rounds + 1) * len(self._questions)
        await eventually(lambda: self.answers >= wanted or bool(self.wrong), "more answers")

    async def _keep_asking(self, model: str, prompt: tuple[int, ...]) -> None:
        expected = self._expected[model, prompt]
        while not self._done.is_set():
            try:
                heard = await self._chaos.ask(model, prompt)
            except GraftError as error:
                self.wrong.append(f"{model} was refused: {error}")
                return
            self.answers += 1
            if heard != expected:
                self.wrong.append(f"{model}: {difference(heard, expected)}")


def difference(heard: Heard, expected: Heard) -> str:
    """Where two answers part."""
    pairs = zip(heard.tokens, expected.tokens, strict=False)
    at = next((place for place, (one, other) in enumerate(pairs) if one != other), -1)
    return (
        f"{heard.version or 'the base'} says {heard.tokens} and in quiet {expected.version or 'the base'} "
        f"said {expected.tokens}: they part at token {at}"
    )


def same(heard: Heard, expected: Heard, model: str) -> None:
    """Fails where they are not one answer."""
    assert heard == expected, f"{model}: {difference(heard, expected)}"


@asynccontextmanager
async def chaos_service(
    engine: SharedEngine, base: Path, folder: Path, **settings: Any
) -> AsyncIterator[Chaos]:
    """Started, with two good adapters: `one` and `two`."""
    registry = MemoryRegistry(FINGERPRINT)
    async with start_inference(
        folder,
        engine=engine,
        registry=registry,
        base=base,
        **{"retry_failed_after_s": 0.0, "metric_linger_s": 0.0, **settings},
    ) as running:
        chaos = Chaos(running, engine, base, folder)
        for seed, name in enumerate(("one", "two"), start=1):
            await chaos.add(name, chaos.fresh(seed))
            await running.promote(name, 1)
        yield chaos
