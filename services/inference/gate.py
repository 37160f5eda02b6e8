"""Where requests wait while the engine cannot answer: for a bounded time, and so many at most."""

from __future__ import annotations

import asyncio

from services.inference.engines.base import Engine, engine_dead


class Gate:
    """Open while the engine can answer. The supervisor opens it; whoever finds the engine dead closes it.

    Args:
        wait_s: longest wait of one request.
        max_waiting: more are refused at once.

    Attributes:
        waiting: how many wait now.
        retry_after_s: what those that are refused are told.
    """

    def __init__(self, engine: Engine, wait_s: float, max_waiting: int) -> None:
        self._engine, self.wait_s, self.max_waiting = engine, wait_s, max_waiting
        self._opened = asyncio.Event()
        self._opened.set()
        self.waiting = 0
        self.retry_after_s = 5.0

    @property
    def is_open(self) -> bool:
        """Whether the engine can answer now."""
        return self._opened.is_set() and self._engine.healthy

    def close(self) -> None:
        """Nobody passes until it is opened."""
        self._opened.clear()

    def open(self) -> None:
        """The engine answers again."""
        self._opened.set()

    async def passed(self) -> None:
        """Returns when the engine can answer.

        Raises:
            GraftError: ENGINE_DEAD when it cannot in time, or when too many wait for it already.
        """
        if self.is_open:
            return
        # It died a moment ago, and its supervisor has not seen it yet.
        self.close()
        if self.waiting >= self.max_waiting:
            raise engine_dead(self.retry_after_s)
        self.waiting += 1
        try:
            async with asyncio.timeout(self.wait_s):
                while not self.is_open:
                    await self._opened.wait()
                    if not self._engine.healthy:
                        self.close()
        except TimeoutError:
            raise engine_dead(self.retry_after_s) from None
        finally:
            self.waiting -= 1
