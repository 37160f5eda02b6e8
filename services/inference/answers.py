"""A request's way from its words to its tokens: resolve, tokenize, check, wait for its turn, take the
version, generate.

Whatever is wrong with a request is found here, before the engine sees it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

from graft.errors import GraftError, Reason

from services.common.tracing import Tracing
from services.inference.domain import AdapterVersion, Base
from services.inference.engines.base import Delta, Engine, EngineAdapter, Sampling
from services.inference.gate import Gate
from services.inference.metrics import InferenceMetrics, VersionSeries
from services.inference.pace import Pace
from services.inference.prompts import Conversation, Prompt, Prompts
from services.inference.residency import Residency
from services.inference.residents import Resident
from services.inference.router import Router
from services.inference.scheduling.queue import Claim, Turn
from services.inference.scheduling.scheduler import Scheduler

# Of a conversation that is not rendered yet.
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Question:
    """A request. max_tokens of 0 in sampling means what is left of the context.

    priority moves it among the requests for the same adapter; see scheduling.queue.Claim.
    """

    model: str
    prompt: Prompt
    sampling: Sampling
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Provenance:
    """What makes an answer; version is None for the base alone."""

    base: Base
    version: AdapterVersion | None


class Answer:
    """An admitted request: its version is loaded and stays so until the answer ends."""

    def __init__(
        self,
        engine: Engine,
        provenance: Provenance,
        prompt_token_ids: Sequence[int],
        sampling: Sampling,
        adapter: EngineAdapter | None,
        series: VersionSeries,
        pace: Pace,
        turn: Turn,
        arrived_s: float,
        tracing: Tracing,
    ) -> None:
        self.provenance = provenance
        self.prompt_tokens = len(prompt_token_ids)
        self.completion_tokens = 0
        self._engine, self._adapter, self._series = engine, adapter, series
        self._prompt_token_ids, self._sampling = prompt_token_ids, sampling
        self._pace, self._turn, self._arrived_s = pace, turn, arrived_s
        self._tracing = tracing

    async def whole(self) -> Delta:
        """All of it at once."""
        async with aclosing(self._deltas(stream=False)) as deltas:
            async for delta in deltas:
                return delta
        raise GraftError(
            Reason.INTERNAL,
            "The engine ended an answer without a word",
            next_step="Ask again; if it comes back, read the log of the service.",
        )

    async def parts(self) -> AsyncGenerator[Delta, None]:
        """What is new, as it comes: the first token at once, then what is ready at the stream's pace."""
        pace = self._pace
        pace.streams += 1
        try:
            async with aclosing(self._deltas(stream=True)) as deltas:
                async for delta in deltas:
                    yield delta
                    interval_s = pace.interval_s
                    if interval_s and delta.finish is None:
                        await asyncio.sleep(interval_s)
        finally:
            pace.streams -= 1

    def stalled(self) -> None:
        """Its reader takes nothing: others get its place. What still comes is counted as ever."""
        self._turn.close()

    async def _deltas(self, *, stream: bool) -> AsyncGenerator[Delta, None]:
        series, outcome, first_s, last_s, gap_s = self._series, "error", 0.0, 0.0, 0.0
        series.prompt_tokens.inc(self.prompt_tokens)
        series.queue.observe(time.perf_counter() - self._arrived_s)
        spans = self._tracing.answering()
        self._turn.start()
        deltas = self._engine.generate(
            uuid.uuid4().hex,
            self._prompt_token_ids,
            self._sampling,
            self._adapter,
            stream=stream,
            trace_headers=spans.headers,
        )
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    now_s = time.perf_counter()
                    if first_s:
                        gap_s = max(gap_s, now_s - last_s)
                    else:
                        first_s = now_s
                        series.first_token.observe(first_s - self._arrived_s)
                        spans.first_token()
                    last_s = now_s
                    new_tokens = len(delta.token_ids)
                    self.completion_tokens += new_tokens
                    self._turn.count(new_tokens)
                    yield delta
            outcome = "ok"
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "ok" if first_s and not stream else "cancelled"
            raise
        finally:
            series.outcomes[outcome].inc()
            series.completion_tokens.inc(self.completion_tokens)
            if stream and self.completion_tokens > 1:
                passed_s = time.perf_counter() - first_s
                series.per_token.observe(passed_s / (self.completion_tokens - 1))
                series.longest_gap.observe(gap_s)
            spans.end(outcome, self.prompt_tokens, self.completion_tokens)


@dataclass(frozen=True, slots=True)
class _Admitted:
    prompt_token_ids: Sequence[int]
    sampling: Sampling
    version: AdapterVersion | None
    resident: Resident | None
    turn: Turn


class Answers:
    """Admits requests."""

    def __init__(
        self,
        engine: Engine,
        gate: Gate,
        router: Router,
        residency: Residency,
        prompts: Prompts,
        base: Base,
        metrics: InferenceMetrics,
        pace: Pace,
        scheduler: Scheduler,
    ) -> None:
        self._engine, self._gate = engine, gate
        self._router, self._residency = router, residency
        self._prompts, self._base = prompts, base
        self._metrics, self._pace, self._scheduler = metrics, pace, scheduler
        self._tracing = metrics.tracing

    @asynccontextmanager
    async def admit(
        self, question: Question, time_remaining_s: float | None = None
    ) -> AsyncIterator[Answer]:
        """Resolves, checks, waits for its turn and takes the version; all is let go when the context ends.

        Args:
            time_remaining_s: until the caller's deadline; None for none.

        Raises:
            GraftError: of Router.resolve, Prompts.token_ids, Scheduler.turn, Residency.acquire;
                INVALID_REQUEST, ENGINE_DEAD.
        """
        arrived_s = time.perf_counter()
        try:
            await self._gate.passed()
            admitted = await self._admit(question, time_remaining_s)
        except GraftError as error:
            self._metrics.refused(error.reason)
            raise
        version, resident = admitted.version, admitted.resident
        series = self._metrics.series(*_labels(self._base, version))
        self._describe(version)
        series.in_flight.inc()
        try:
            yield Answer(
                self._engine,
                Provenance(self._base, version),
                admitted.prompt_token_ids,
                admitted.sampling,
                None if resident is None else resident.adapter,
                series,
                self._pace,
                admitted.turn,
                arrived_s,
                self._tracing,
            )
        finally:
            series.in_flight.dec()
            if resident is not None:
                self._residency.release(resident)
            admitted.turn.close()

    async def _admit(self, question: Question, time_remaining_s: float | None) -> _Admitted:
        """What can be known to be wrong is refused before it takes a place in the queue."""
        arrived_s, prompt, sampling = time.perf_counter(), question.prompt, question.sampling
        ids: Sequence[int] | None = None
        if isinstance(prompt, Conversation):
            self._prompts.check_conversation(prompt)
        else:
            ids = await self._prompts.token_ids(prompt)
            sampling = self._complete(sampling, len(ids))
        version = await self._resolve(question.model)
        if version is not None:
            with self._tracing.span("prepare"):
                await self._residency.prepare(version)
        if time_remaining_s is not None:
            time_remaining_s -= time.perf_counter() - arrived_s
        claim = self._claim(question, version, ids, sampling, time_remaining_s)
        turn = await self._scheduler.turn(claim)
        try:
            self._metrics.queue_wait.labels(turn.cause.value).observe(turn.waited_s)
            self._metrics.waited_turn(*_labels(self._base, version), turn.waited_s)
            return await self._use(turn, question, ids, sampling)
        except BaseException:
            turn.close()
            raise

    def _claim(
        self,
        question: Question,
        version: AdapterVersion | None,
        ids: Sequence[int] | None,
        sampling: Sampling,
        time_remaining_s: float | None,
    ) -> Claim:
        base, prompt = self._base, question.prompt
        if ids is None:
            assert isinstance(prompt, Conversation)
            prompt_tokens = prompt.size_bytes // _BYTES_PER_TOKEN + 1
        else:
            prompt_tokens = len(ids)
        return Claim(
            namespace=base.namespace,
            adapter=base.base_id if version is None else version.adapter_id,
            slot="" if version is None else version.name,
            prompt_tokens=prompt_tokens,
            max_tokens=sampling.max_tokens or self._engine.limits.max_context_tokens,
            priority=question.priority,
            time_remaining_s=time_remaining_s,
        )

    async def _use(
        self, turn: Turn, question: Question, ids: Sequence[int] | None, sampling: Sampling
    ) -> _Admitted:
        """Takes the version that the name means now, and with it, for a conversation, its template."""
        # The engine may have died while it waited.
        await self._gate.passed()
        version = await self._resolve(question.model)
        turn.move("" if version is None else version.name)
        resident = None
        if version is not None:
            with self._tracing.span("acquire"):
                resident = await self._residency.acquire(version)
        turn.ready()
        try:
            if ids is None:
                template = None if resident is None else resident.template
                ids = await self._prompts.token_ids(question.prompt, template)
                sampling = self._complete(sampling, len(ids))
                turn.prompt(len(ids))
        except BaseException:
            if resident is not None:
                self._residency.release(resident)
            raise
        return _Admitted(ids, sampling, version, resident, turn)

    async def _resolve(self, model: str) -> AdapterVersion | None:
        with self._tracing.span("resolve"):
            return await self._router.resolve(model)

    def _describe(self, version: AdapterVersion | None) -> None:
        """Says in the call's span who answers."""
        if version is None:
            self._tracing.describe(**{"graft.base": self._base.name})
        else:
            self._tracing.describe(
                **{"graft.version": version.name, "graft.version_digest": version.digest}
            )

    def _complete(self, sampling: Sampling, prompt_tokens: int) -> Sampling:
        limits = self._engine.limits
        left = limits.max_context_tokens - prompt_tokens
        wrong = next((each for each in sampling.stop_token_ids if each >= limits.vocab_size), None)
        if wrong is not None:
            raise _invalid(
                f"sampling.stop_token_ids has {wrong}, and the vocabulary ends at "
                f"{limits.vocab_size - 1}",
                "Name tokens of the base's vocabulary.",
            )
        if sampling.min_tokens > left:
            raise _invalid(
                f"sampling.min_tokens is {sampling.min_tokens}, and {left} tokens are left of the "
                f"context of {limits.max_context_tokens}",
                "Lower sampling.min_tokens, or shorten the prompt.",
            )
        if 0 < sampling.max_tokens <= left:
            return sampling
        return replace(sampling, max_tokens=left)


def _labels(base: Base, version: AdapterVersion | None) -> tuple[str, str]:
    if version is None:
        return base.base_id, ""
    return version.adapter_id, str(version.number)


def _invalid(what: str, next_step: str) -> GraftError:
    return GraftError(Reason.INVALID_REQUEST, what, next_step=next_step)
