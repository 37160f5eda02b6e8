"""Collects from time to time in the background, and watches leases meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from graft.errors import GraftError

from services.common.logs import get_logger
from services.registry.collection.collector import Collector

# Also how long after its time a lease may still be there.
LOOK_S = 15.0


class CollectionLoop:
    """Runs a collector. Several processes may do so on one catalogue: one collects, all watch leases.

    Args:
        collector: what it runs.
        interval_s: from one collection to the next; 0 for none.
        look_s: from one look at the leases to the next.
    """

    def __init__(self, collector: Collector, interval_s: float, look_s: float = LOOK_S) -> None:
        self._collector, self._interval_s, self._look_s = collector, interval_s, look_s
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begins."""
        self._tasks.append(asyncio.create_task(self._watch()))
        if self._interval_s:
            self._tasks.append(asyncio.create_task(self._collect()))

    async def close(self) -> None:
        """Ends it; what is under way is finished by the next collection."""
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _watch(self) -> None:
        while True:
            try:
                await self._collector.watch_leases()
            except GraftError as error:
                get_logger().warning("leases could not be watched", error=str(error))
            await asyncio.sleep(self._look_s)

    async def _collect(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                report = await self._collector.collect()
            except GraftError as error:
                get_logger().info("no collection", error=str(error))
            except Exception as error:
                # Nothing is lost by garbage that stays; the next run tries again.
                get_logger().error("the collection failed", exc_info=error)
            else:
                get_logger().info(
                    "collected",
                    blobs=report.removed_blobs,
                    bytes=report.removed_bytes,
                    versions=len(report.purged_versions),
                )
