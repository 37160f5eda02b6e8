"""What one base answers: admits a question, gives its answer, and lets go of all it held when that ends.

A request's way is in admission.py, its answer in answer.py, and many inputs at once in embeddings.py.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from graft.errors import GraftError

from services.inference.admission import Admission, Admitted
from services.inference.answer import Answer
from services.inference.attestation.attestor import Attestor
from services.inference.domain import AdapterVersion, Base
from services.inference.engines.base import Engine
from services.inference.gate import Gate
from services.inference.metrics import InferenceMetrics, labels_of
from services.inference.pace import Pace
from services.inference.prompts import Prompt
from services.inference.questions import Provenance, Question
from services.inference.succession import Succession
from services.inference.version_series import VersionSeries


@dataclass(frozen=True, slots=True)
class TokenCount:
    """What a prompt would take of the context."""

    tokens: int
    max_context_tokens: int
    provenance: Provenance


class Answers:
    """Of one base, until another takes its place."""

    def __init__(
        self,
        engine: Engine,
        base: Base,
        gate: Gate,
        admission: Admission,
        attestor: Attestor,
        metrics: InferenceMetrics,
        pace: Pace,
    ) -> None:
        self._engine, self._base = engine, base
        self._admission, self._attestor = admission, attestor
        self._metrics, self._tracing, self._pace = metrics, metrics.tracing, pace
        self.succession: Succession[Answers] = Succession(gate.wait_s, gate.max_waiting)

    @asynccontextmanager
    async def admit(
        self, question: Question, time_remaining_s: float | None = None
    ) -> AsyncIterator[Answer]:
        """Its answer; those of another base, once it has taken this one's place, answer instead.

        Args:
            time_remaining_s: until the caller's deadline; None for none.

        Raises:
            GraftError: of Admission.admit; UNAVAILABLE while the base is changed.
        """
        heir = await self.succession.heir()
        if heir is not None:
            async with heir.admit(question, time_remaining_s) as answer:
                yield answer
            return
        with self.succession.inside():
            async with self._admit_here(question, time_remaining_s) as answer:
                yield answer

    @asynccontextmanager
    async def _admit_here(
        self, question: Question, time_remaining_s: float | None
    ) -> AsyncIterator[Answer]:
        """Resolves, checks, waits for its turn and takes the version; all is let go when the context ends.

        Args:
            time_remaining_s: until the caller's deadline; None for none.

        Raises:
            GraftError: of Admission.admit.
        """
        arrived_s = time.perf_counter()
        try:
            admitted = await self._admission.admit(question, time_remaining_s)
        except GraftError as error:
            self._metrics.refused(error.reason)
            raise
        series = self._metrics.series(*labels_of(self._base, admitted.routed.version))
        series.in_flight.inc()
        try:
            yield self._answer(question, admitted, series, arrived_s)
        finally:
            if admitted.watch is not None:
                # Where its answer was never asked for.
                admitted.watch.end("cancelled")
            series.in_flight.dec()
            self._admission.release(admitted)

    def _answer(
        self, question: Question, admitted: Admitted, series: VersionSeries, arrived_s: float
    ) -> Answer:
        routed, resident = admitted.routed, admitted.resident
        self._describe(routed.version)
        engine = self._admission.engine_of(None) if resident is None else resident.engine
        provenance = Provenance(self._base, routed.version, engine, routed.alias, routed.part)
        record = self._attestor.record(
            provenance, question, admitted.prompt_token_ids, admitted.sampling
        )
        return Answer(
            self._engine,
            question,
            admitted,
            provenance,
            record,
            series,
            self._tracing,
            self._pace,
            arrived_s,
        )

    async def count_tokens(self, model: str, prompt: Prompt) -> TokenCount:
        """What a prompt takes, by the version's own chat template; no slot is needed for it.

        Raises:
            GraftError: of Admission.count.
        """
        try:
            version, tokens = await self._admission.count(model, prompt)
        except GraftError as error:
            self._metrics.refused(error.reason)
            raise
        context = self._engine.limits.max_context_tokens
        return TokenCount(tokens, context, Provenance(self._base, version))

    def _describe(self, version: AdapterVersion | None) -> None:
        """Says in the call's span who answers."""
        if version is None:
            self._tracing.describe(**{"graft.base": self._base.name})
        else:
            self._tracing.describe(
                **{"graft.version": version.name, "graft.version_digest": version.digest}
            )
