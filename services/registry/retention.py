"""Lets go of events and request keys that are past their retention, in the background."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from graft.errors import GraftError

from services.common.logs import get_logger
from services.registry.catalogue.base import Catalogue


@dataclass(frozen=True, slots=True)
class Retention:
    """How long events and request keys are kept; the last `events` of them stay however old."""

    age_s: float
    events: int
    interval_s: float


class Compaction:
    """Compacts from time to time. Several processes may do so on one database.

    Args:
        catalogue: whose events.
        retention: what stays, and how often to look.
    """

    def __init__(self, catalogue: Catalogue, retention: Retention) -> None:
        self._catalogue, self._retention = catalogue, retention
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Ends it."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def compact_once(self) -> int:
        """Lets go of what is past its retention; returns the last revision that is not kept."""
        before = datetime.now(UTC) - timedelta(seconds=self._retention.age_s)
        return await self._catalogue.compact(before, self._retention.events)

    async def _run(self) -> None:
        while True:
            try:
                await self.compact_once()
            except GraftError as error:
                get_logger().warning("old events could not be removed", error=str(error))
            await asyncio.sleep(self._retention.interval_s)
