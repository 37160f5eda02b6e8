"""How what answers gives its place to another without losing a request: who is inside ends here, the others go there.

Everything between asking for the heir and being inside runs without an interruption, so nobody is between the two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from graft.errors import GraftError, Reason

T = TypeVar("T")


class Succession(Generic[T]):
    """Of one that answers.

    Args:
        wait_s: longest wait of a request for an heir.
        max_waiting: more are refused at once.

    Attributes:
        waiting: how many wait now.
    """

    def __init__(self, wait_s: float, max_waiting: int) -> None:
        self._wait_s, self._max_waiting = wait_s, max_waiting
        self._heir: T | None = None
        self._decided = asyncio.Event()
        self._decided.set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._inside = self.waiting = 0
        self._ended = False

    @property
    def in_flight(self) -> int:
        """Requests that end here."""
        return self._inside

    async def heir(self) -> T | None:
        """Who answers what comes now; None where nothing has changed.

        Raises:
            GraftError: UNAVAILABLE when it is not decided in time, or when too many wait for it already.
        """
        if self._decided.is_set():
            return self._found()
        if self.waiting >= self._max_waiting:
            raise _changing()
        self.waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await self._decided.wait()
        except TimeoutError:
            raise _changing() from None
        finally:
            self.waiting -= 1
        return self._found()

    def _found(self) -> T | None:
        if self._ended:
            raise _changing()
        return self._heir

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Around a request that ends here."""
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def empty(self) -> None:
        """Returns when nobody is inside."""
        await self._empty.wait()

    def leave(self) -> None:
        """What comes from now on waits for who answers next."""
        self._decided.clear()

    def stay(self) -> None:
        """It goes on, after all."""
        self._decided.set()

    def end(self) -> None:
        """Nobody answers any more: who comes and who waits is refused."""
        self._ended = True
        self._decided.set()

    def to(self, heir: T) -> None:
        """What comes from now on, and who waits, goes there."""
        self._heir = heir
        self._decided.set()


def _changing() -> GraftError:
    return GraftError(
        Reason.UNAVAILABLE,
        "The service changes its base, and cannot answer meanwhile",
        next_step="Try again in a few seconds, or on another replica; `graft bases served` says how far it is.",
        retry_after_s=5,
    )
