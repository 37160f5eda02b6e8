"""Works through many things a few at a time, and says on a terminal how far it is."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TextIO

_AT_ONCE = 8
_EVERY_S = 0.2


class Progress:
    """One line on standard error that is written over and over.

    Args:
        what: is done, for example "Copying".
        total: how many there are.
        stream: where it goes.
    """

    def __init__(self, what: str, total: int, stream: TextIO | None = None) -> None:
        self._what, self._total = what, total
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._done, self._shown_s = 0, 0.0

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        now_s = time.monotonic()
        last = self._done == self._total
        if self._live and (last or now_s - self._shown_s >= _EVERY_S):
            self._shown_s = now_s
            end = "\n" if last else ""
            self._stream.write(f"\r{self._what} {self._done} of {self._total}{end}")
            self._stream.flush()


async def each(
    what: str, sizes: Mapping[str, int], work: Callable[[str, int], Awaitable[None]]
) -> None:
    """Calls work(digest, size) for all of them.

    Raises:
        GraftError: what work raised first; the others are broken off.
    """
    progress, turns = Progress(what, len(sizes)), asyncio.Semaphore(_AT_ONCE)

    async def one(digest: str, size_bytes: int) -> None:
        async with turns:
            await work(digest, size_bytes)
            progress.step()

    try:
        async with asyncio.TaskGroup() as group:
            for digest, size_bytes in sizes.items():
                group.create_task(one(digest, size_bytes))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
