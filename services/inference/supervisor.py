"""Watches the engine: when it dies it is started anew with back-off, and what it held is brought back.

Only requests that were on it fail. Those that come meanwhile wait at the gate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.common.logs import get_logger
from services.inference.domain import AdapterVersion
from services.inference.engines.base import Engine
from services.inference.gate import Gate
from services.inference.metrics import InferenceMetrics
from services.inference.required import Required
from services.inference.residency import Residency


@dataclass(frozen=True, slots=True)
class RestartOptions:
    """See InferenceSettings; after stable_s of life a death is the first again."""

    first_delay_s: float = 1.0
    max_delay_s: float = 60.0
    limit: int = 5
    stable_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Probes:
    """What health is told: whether the service can answer, and whether there is hope that it will."""

    ready: Callable[[bool], Awaitable[None]]
    alive: Callable[[bool], Awaitable[None]]


class Supervisor:
    """The life of one engine, from its first start on."""

    def __init__(
        self,
        engine: Engine,
        gate: Gate,
        residency: Residency,
        required: Required,
        metrics: InferenceMetrics,
        probes: Probes,
        options: RestartOptions,
    ) -> None:
        self._engine, self._gate, self._residency = engine, gate, residency
        self._required, self._metrics = required, metrics
        self._probes, self._options = probes, options
        self._task: asyncio.Task[None] | None = None
        # Lost with a dead engine and not brought back yet, what is wanted most first.
        self._lost: list[AdapterVersion] = []
        self._deaths = 0

    def start(self) -> None:
        """The engine has started: watches it from now on."""
        self._metrics.engine_up.set(1)
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Watches no more, and ends a start that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        began_s = time.monotonic()
        replay: asyncio.Task[None] | None = None
        try:
            while True:
                await self._engine.wait_dead()
                if replay is not None:
                    replay.cancel()
                    await asyncio.gather(replay, return_exceptions=True)
                if time.monotonic() - began_s > self._options.stable_s:
                    self._deaths = 0
                await self._bury()
                await self._start_anew()
                began_s = time.monotonic()
                replay = asyncio.create_task(self._bring_back())
        finally:
            if replay is not None:
                replay.cancel()
                await asyncio.gather(replay, return_exceptions=True)

    async def _bury(self) -> None:
        self._gate.close()
        self._metrics.engine_up.set(0)
        lost = self._residency.lost()
        names = {version.name for version in lost}
        self._lost = lost + [each for each in self._lost if each.name not in names]
        get_logger().critical("the engine has died", lost=[each.name for each in self._lost])
        await self._probes.ready(False)

    async def _start_anew(self) -> None:
        """Returns when it runs; the first try is made at once."""
        while True:
            delay_s = self._delay_s()
            self._deaths += 1
            if self._deaths > self._options.limit:
                # Whoever watches liveness starts the process anew: it may help where an engine does not.
                await self._probes.alive(False)
            await asyncio.sleep(delay_s)
            began_s = time.monotonic()
            try:
                await self._engine.start()
            except Exception as error:
                self._metrics.engine_starts.labels("failed").inc()
                get_logger().error("the engine does not start", tries=self._deaths, exc_info=error)
                continue
            took_s = time.monotonic() - began_s
            self._metrics.engine_starts.labels("started").inc()
            self._metrics.engine_up.set(1)
            self._gate.retry_after_s = max(1.0, round(took_s, 1))
            self._gate.open()
            await self._probes.alive(True)
            get_logger().info("the engine runs again", seconds=round(took_s, 3))
            return

    def _delay_s(self) -> float:
        if self._deaths == 0:
            return 0.0
        # 2**32 of anything is past every bound.
        doubled_s = self._options.first_delay_s * 2.0 ** min(self._deaths - 1, 32)
        return min(doubled_s, self._options.max_delay_s)

    async def _bring_back(self) -> None:
        # What is required and cannot be had must not keep the rest away.
        whole = await self._required.attempt()
        if whole:
            await self._probes.ready(True)
        while self._lost:
            # One after the other: the order is what they are worth.
            await self._residency.warm(self._lost[0])
            del self._lost[0]
        if not whole:
            await self._required.settle()
            await self._probes.ready(True)
