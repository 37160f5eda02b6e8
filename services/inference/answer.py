"""One answer on its way from the engine to its reader: whole, as it comes, or as a vector; counted and timed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from graft.attestation import Attestation
from graft.errors import GraftError, Reason

from services.common.tracing import Tracing
from services.inference.admission import Admitted
from services.inference.attestation.record import Record
from services.inference.engines.base import Delta, Engine, Pooling, Sampling
from services.inference.many import several, with_whole_calls
from services.inference.measured import Measured
from services.inference.pace import Pace
from services.inference.prompts import Conversation, Prompt
from services.inference.questions import Provenance, Question
from services.inference.version_series import VersionSeries


class Answer:
    """An admitted request: its version is loaded and stays so until the answer ends.

    Attributes:
        prompt_tokens: counted once, however many answers there are.
    """

    def __init__(
        self,
        engine: Engine,
        question: Question,
        admitted: Admitted,
        provenance: Provenance,
        record: Record,
        series: VersionSeries,
        tracing: Tracing,
        pace: Pace,
        arrived_s: float,
    ) -> None:
        self.provenance = provenance
        self.prompt_tokens = len(admitted.prompt_token_ids)
        self._measured: Measured | None = None
        self._engine, self._question, self._admitted = engine, question, admitted
        self._adapter = None if admitted.resident is None else admitted.resident.adapter
        self._turn, self._record = admitted.turn, record
        self._series, self._tracing = series, tracing
        self._pace, self._arrived_s = pace, arrived_s

    @property
    def completion_tokens(self) -> int:
        """Of all answers together, so far."""
        return 0 if self._measured is None else self._measured.completion_tokens

    def attest(self) -> Attestation | None:
        """What the service stands for about it; None before it has ended, or where it ended in an error."""
        return self._record.attest()

    async def whole(self) -> Delta:
        """All of it at once, where one answer was asked for."""
        return (await self.wholes())[0]

    async def wholes(self) -> list[Delta]:
        """All answers at once, in the order of their index, their calls of tools whole."""
        async with aclosing(self._deltas(stream=False)) as deltas:
            found = [with_whole_calls(delta) async for delta in deltas]
        if len(found) != self._question.n:
            raise GraftError(
                Reason.INTERNAL,
                f"The engine ended {len(found)} of {self._question.n} answers",
                next_step="Ask again; if it comes back, read the log of the service.",
            )
        return sorted(found, key=lambda delta: delta.index)

    async def embedding(self, pooling: Pooling) -> Sequence[float]:
        """The vector of the prompt, in the place of an answer.

        Raises:
            GraftError: of Engine.embed.
        """
        measured, outcome = self._begin(), "error"
        try:
            vector = await self._engine.embed(
                uuid.uuid4().hex,
                self._admitted.prompt_token_ids,
                self._adapter,
                pooling,
                trace_headers=measured.trace_headers,
            )
            outcome = "ok"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            measured.end(outcome, stream=False)
        return vector

    async def parts(self) -> AsyncGenerator[Delta, None]:
        """What is new, as it comes: the first token at once, then what is ready at the stream's pace.

        Of several answers each delta has the index of its own, and each answer a last one.
        """
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

    def _begin(self) -> Measured:
        """The engine gets it now."""
        self._turn.start()
        return Measured(self._series, self._tracing, self._arrived_s, self.prompt_tokens)

    async def _deltas(self, *, stream: bool) -> AsyncGenerator[Delta, None]:
        self._measured, outcome, watch = self._begin(), "error", self._admitted.watch
        measured, turn, record = self._measured, self._turn, self._record
        if watch is not None:
            watch.start(self._watched_prompt(), self._admitted.sampling, streamed=stream)
        try:
            async with aclosing(self._generated(stream, measured.trace_headers)) as deltas:
                async for delta in deltas:
                    new_tokens = len(delta.token_ids)
                    measured.came(new_tokens)
                    turn.count(new_tokens)
                    record.add(delta)
                    if watch is not None:
                        watch.count(delta)
                    yield delta
            outcome = "ok"
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "ok" if measured.begun and not stream else "cancelled"
            raise
        except GraftError as error:
            if watch is not None:
                watch.fail(error)
            raise
        finally:
            if watch is not None:
                watch.end(outcome)
            measured.end(outcome, stream=stream)

    def _generated(
        self, stream: bool, trace_headers: Mapping[str, str] | None
    ) -> AsyncGenerator[Delta, None]:
        """Nothing stands between the engine and its reader where one plain answer is wanted."""

        def generate(sampling: Sampling) -> AsyncGenerator[Delta, None]:
            return self._engine.generate(
                uuid.uuid4().hex,
                self._admitted.prompt_token_ids,
                sampling,
                self._adapter,
                stream=stream,
                trace_headers=trace_headers,
            )

        count, sampling, readers = self._question.n, self._admitted.sampling, self._admitted.readers
        if count == 1 and not readers:
            return generate(sampling)
        return several(generate, sampling, count, readers)

    def _watched_prompt(self) -> Prompt:
        """A copy renders a conversation by its own version's template."""
        prompt = self._question.prompt
        return prompt if isinstance(prompt, Conversation) else self._admitted.prompt_token_ids
