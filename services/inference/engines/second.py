"""An engine that is started when it is first needed, started anew when it has died, and ended when nobody needs it.

Whoever uses it need not know: what was loaded comes back with the next request for it. Requests that were on
it when it died end with ENGINE_DEAD, and may be tried again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from graft.errors import GraftError, Reason
from prometheus_client.metrics_core import Metric

from services.common.logs import get_logger
from services.inference.engines.base import (
    Delta,
    Engine,
    EngineAdapter,
    Limits,
    Sampling,
    engine_dead,
)
from services.inference.engines.second_metrics import second_metrics

_MAX_DEATHS = 3


@dataclass(frozen=True, slots=True)
class SecondOptions:
    """How a second engine lives.

    Attributes:
        wait_s: longest wait of a request for an engine that is being started.
        first_delay_s: before the second try to start it; then doubles.
        max_delay_s: but no longer than this.
        stable_s: after so long a life its death is the first again.
        idle_s: how long it goes on when nothing is loaded any more; its memory is free then.
    """

    wait_s: float = 30.0
    first_delay_s: float = 1.0
    max_delay_s: float = 60.0
    stable_s: float = 60.0
    idle_s: float = 300.0


class SecondEngine:
    """Keeps one engine.

    Args:
        engine: not started.
        limits: what it can take, as far as that is known before it has started.
    """

    def __init__(self, engine: Engine, limits: Limits, options: SecondOptions) -> None:
        self.engine, self.limits, self._options = engine, limits, options
        # By number: what is to be there, and what is there in this life of the engine.
        self._wanted: dict[int, EngineAdapter] = {}
        self._present: set[int] = set()
        # How often it died while it loaded an adapter.
        self._died_of: Counter[int] = Counter()
        self._loading = asyncio.Lock()
        self._starting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._failures, self._retry_at_s = 0, 0.0
        self._starts, self._deaths = 0, 0

    def begin(self) -> None:
        """It may be started from now on, by the first load, until stop()."""
        self._stopped = False

    def holds(self, adapter: EngineAdapter) -> bool:
        """Whether an adapter was loaded here."""
        return adapter.number in self._wanted

    async def inspect(self, name: str, folder: Path) -> None:
        """As Engine.inspect; needs no running engine."""
        await self.engine.inspect(name, folder)

    async def load(self, adapter: EngineAdapter) -> None:
        """As Engine.load; starts the engine where it does not run.

        Raises:
            GraftError: as Engine.load and Engine.start.
        """
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        self._wanted[adapter.number] = adapter
        try:
            await self._bring(adapter)
        except BaseException:
            self._forget(adapter)
            raise

    async def unload(self, adapter: EngineAdapter) -> None:
        """As Engine.unload."""
        present = adapter.number in self._present
        self._forget(adapter)
        if present and self.engine.healthy:
            await self.engine.unload(adapter)

    async def generate(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        sampling: Sampling,
        adapter: EngineAdapter,
        *,
        stream: bool,
    ) -> AsyncGenerator[Delta, None]:
        """As Engine.generate; waits for an engine that is being started."""
        await self._bring(adapter, self._options.wait_s)
        answers = self.engine.generate(
            request_id, prompt_token_ids, sampling, adapter, stream=stream
        )
        async with aclosing(answers):
            async for delta in answers:
                yield delta

    async def _bring(self, adapter: EngineAdapter, wait_s: float | None = None) -> None:
        """Returns when the engine runs and holds the adapter; waits for its start as long as it takes, or so long."""
        await self._run(wait_s)
        if adapter.number in self._present:
            return
        async with self._loading:
            if adapter.number not in self._wanted:
                raise engine_dead()
            if adapter.number not in self._present:
                await self._load(adapter)

    async def _load(self, adapter: EngineAdapter) -> None:
        try:
            await self.engine.load(adapter)
        except GraftError as error:
            if error.reason is Reason.ENGINE_DEAD:
                self._died_of[adapter.number] += 1
                if self._died_of[adapter.number] >= _MAX_DEATHS:
                    # Whatever it does to the engine, it does it to all others' requests.
                    self._forget(adapter)
            raise
        self._present.add(adapter.number)

    async def _run(self, wait_s: float | None) -> None:
        if self.engine.healthy:
            return
        if self._stopped:
            raise engine_dead()
        starting = self._start()
        try:
            async with asyncio.timeout(wait_s):
                # Others wait for the same start.
                await asyncio.shield(starting)
        except TimeoutError:
            raise engine_dead() from None
        except GraftError as error:
            # Raised anew: each caller gets its own.
            raise GraftError(
                error.reason, error.message, next_step=error.next_step, **error.metadata
            ) from None

    def _start(self) -> asyncio.Task[None]:
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start_now())
            # Nobody may be left to hear of a failure.
            self._starting.add_done_callback(lambda done: done.cancelled() or done.exception())
        return self._starting

    async def _start_now(self) -> None:
        await asyncio.sleep(max(0.0, self._retry_at_s - time.monotonic()))
        self._present.clear()
        began_s = time.monotonic()
        try:
            await self.engine.start()
        except Exception as error:
            self._failed()
            get_logger().error("the second engine does not start", exc_info=error)
            raise
        self._starts += 1
        took_s = round(time.monotonic() - began_s, 3)
        get_logger().info("the second engine runs", engine=self.limits.engine, seconds=took_s)
        self._watching = asyncio.create_task(self._mourn(time.monotonic()))

    async def _mourn(self, began_s: float) -> None:
        await self.engine.wait_dead()
        self._present.clear()
        if self._stopped or not self._wanted:
            return
        self._deaths += 1
        if time.monotonic() - began_s > self._options.stable_s:
            self._failures = 0
        get_logger().critical(
            "the second engine has died", lost=[each.name for each in self._wanted.values()]
        )
        if self._failures:
            self._failed()
        else:
            # Of a first death it is started anew at once.
            self._failures = 1
        self._start()

    def _failed(self) -> None:
        options = self._options
        delay_s = options.first_delay_s * 2.0 ** min(self._failures, 32)
        self._retry_at_s = time.monotonic() + min(delay_s, options.max_delay_s)
        self._failures += 1

    def _forget(self, adapter: EngineAdapter) -> None:
        self._wanted.pop(adapter.number, None)
        self._present.discard(adapter.number)
        del self._died_of[adapter.number]
        if not self._wanted and not self._stopped and self._idle is None:
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(self._options.idle_s, self._rest)

    def _rest(self) -> None:
        """Nothing has been loaded for a while: the memory is others'."""
        self._idle = None
        if not self._wanted:
            if self._watching is not None:
                self._watching.cancel()
            task = asyncio.create_task(self.engine.stop())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def stop(self) -> None:
        """Ends the engine; nothing starts it any more."""
        self._stopped = True
        if self._idle is not None:
            self._idle.cancel()
        tasks = [each for each in (self._starting, self._watching, *self._ending) if each]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.engine.stop()

    def metrics(self) -> Iterable[Metric]:
        """What an operator wants to know of it."""
        return second_metrics(
            self.limits.engine,
            up=self.engine.healthy,
            adapters=len(self._wanted),
            in_flight=self.engine.unfinished(),
            starts=self._starts,
            deaths=self._deaths,
        )
