"""Stores what a launcher says of a worker, in order, as events and as where the job stands."""

from __future__ import annotations

import asyncio

from services.common.logs import get_logger
from services.trainer.jobs import Attempt
from services.trainer.journal import Journal
from services.trainer.launchers.base import Notice
from services.trainer.lifecycle import noted


class Notices:
    """The notices of one attempt.

    Args:
        journal: where they go.
        attempt: what they are about.
    """

    def __init__(self, journal: Journal, attempt: Attempt) -> None:
        self._journal, self._attempt = journal, attempt
        self._queue: asyncio.Queue[Notice | None] = asyncio.Queue()
        self._task = asyncio.ensure_future(self._store())

    def heard(self, notice: Notice) -> None:
        """A notice has come."""
        self._queue.put_nowait(notice)

    async def close(self) -> None:
        """Waits until all that came is stored."""
        self._queue.put_nowait(None)
        await self._task

    def leave(self) -> None:
        """Stops at once; what is not stored yet is said again to the next trainer."""
        self._task.cancel()

    async def _store(self) -> None:
        while (notice := await self._queue.get()) is not None:
            try:
                decide = noted(self._attempt.number, notice.text, notice.standing)
                await self._journal.change(self._attempt.job, decide)
            except Exception as error:
                # Only words: the job goes on without them.
                get_logger().error("notice not stored", job=self._attempt.job, exc_info=error)
