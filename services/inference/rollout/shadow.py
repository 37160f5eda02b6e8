"""Copies of requests to another version: answered when there is room, compared, and thrown away.

They take no turn in the queue, so they count towards nobody's limits; where requests need the engine they
are dropped, also in the middle of an answer.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from graft.errors import GraftError

from services.common.logs import get_logger
from services.inference.domain import AdapterVersion
from services.inference.engines.base import Delta, Engine, Sampling
from services.inference.prompts import Conversation, Prompt, Prompts
from services.inference.residency import Residency
from services.inference.rollout.metrics import RolloutMetrics

MOST_RUNNING = 4
_MOST_WAITING = 16


@dataclass(slots=True)
class ShadowTally:
    """What came of the copies for one version so far; sums, but for the counts."""

    version: AdapterVersion
    compared: int = 0
    equal: int = 0
    agreement: float = 0.0
    length_ratio: float = 0.0
    time_ratio: float = 0.0
    failed: int = 0
    dropped: int = 0


class Copy:
    """A request that may be copied, with its real answer as it comes.

    Attributes:
        token_ids: of the real answer.
        passed_s: how long that took.
    """

    __slots__ = ("_began_s", "passed_s", "prompt", "sampling", "tally", "token_ids")

    def __init__(self, tally: ShadowTally) -> None:
        self.tally = tally
        self.prompt: Prompt = ""
        self.sampling: Sampling | None = None
        self.token_ids: list[int] = []
        self._began_s = self.passed_s = 0.0

    def start(self, prompt: Prompt, sampling: Sampling) -> None:
        """The engine has the request now."""
        self.prompt, self.sampling, self._began_s = prompt, sampling, time.perf_counter()

    def count(self, delta: Delta) -> None:
        """New tokens came."""
        if not delta.index:
            self.token_ids.extend(delta.token_ids)

    def end(self) -> None:
        """The answer is complete."""
        self.passed_s = time.perf_counter() - self._began_s


class Shadows:
    """Runs copies, so many at once at most and few that wait.

    Args:
        busy: whether requests need the engine for themselves.
    """

    def __init__(
        self,
        engine: Engine,
        residency: Residency,
        prompts: Prompts,
        metrics: RolloutMetrics,
        busy: Callable[[], bool],
    ) -> None:
        self._engine, self._residency, self._prompts = engine, residency, prompts
        self._metrics, self._busy = metrics, busy
        self._running = asyncio.Semaphore(MOST_RUNNING)
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, copy: Copy) -> None:
        """Takes a copy on, or drops it; returns at once."""
        if self._busy() or len(self._tasks) >= MOST_RUNNING + _MOST_WAITING:
            self._drop(copy)
            return
        task = asyncio.create_task(self._run(copy))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ends what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _drop(self, copy: Copy) -> None:
        copy.tally.dropped += 1
        self._metrics.shadows.labels("dropped").inc()

    async def _run(self, copy: Copy) -> None:
        async with self._running:
            # Nobody's adapter makes room for a copy.
            if self._busy() or not self._residency.holds(copy.tally.version):
                self._drop(copy)
                return
            try:
                began_s = time.perf_counter()
                token_ids = await self._answer(copy)
                if token_ids is None:
                    self._drop(copy)
                else:
                    self._compare(copy, token_ids, time.perf_counter() - began_s)
            except GraftError as error:
                self._fail(copy, error)
            except Exception as error:
                # A copy must not be heard of outside of here.
                self._fail(copy, error)

    async def _answer(self, copy: Copy) -> list[int] | None:
        """The copy's tokens; None where it was dropped on the way."""
        resident = await self._residency.acquire(copy.tally.version)
        try:
            prompt = copy.prompt
            ids: Sequence[int] = (
                await self._prompts.token_ids(prompt, resident.template)
                if isinstance(prompt, Conversation | str)
                else prompt
            )
            assert copy.sampling is not None
            found: list[int] = []
            deltas = self._engine.generate(
                f"shadow-{uuid.uuid4().hex}", ids, copy.sampling, resident.adapter, stream=True
            )
            async with aclosing(deltas):
                async for delta in deltas:
                    if not delta.index:
                        found.extend(delta.token_ids)
                    if self._busy():
                        return None
            return found
        finally:
            self._residency.release(resident)

    def _fail(self, copy: Copy, error: Exception) -> None:
        copy.tally.failed += 1
        self._metrics.shadows.labels("failed").inc()
        get_logger().info("shadow failed", version=copy.tally.version.name, error=str(error))

    def _compare(self, copy: Copy, token_ids: list[int], passed_s: float) -> None:
        tally, real = copy.tally, copy.token_ids
        same = agreement(real, token_ids)
        tally.compared += 1
        tally.equal += real == token_ids
        tally.agreement += same
        length_ratio = len(token_ids) / max(1, len(real))
        time_ratio = passed_s / max(1e-6, copy.passed_s)
        tally.length_ratio += length_ratio
        tally.time_ratio += time_ratio
        self._metrics.shadows.labels("equal" if real == token_ids else "different").inc()
        self._metrics.shadow_agreement.observe(same)
        self._metrics.shadow_length_ratio.observe(length_ratio)
        self._metrics.shadow_time_ratio.observe(time_ratio)


def agreement(one: Sequence[int], other: Sequence[int]) -> float:
    """Share of positions with the same token; 1 for two empty answers."""
    longer = max(len(one), len(other))
    same = sum(left == right for left, right in zip(one, other, strict=False))
    return same / longer if longer else 1.0
