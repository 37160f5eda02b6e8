"""Follows the catalogue's changes: what is stored is replayed, then told as it is stored.

One reader per process reads each new event from the database, once for all who watch. A watcher
that is slow reads what it missed from the database by itself, and keeps nobody waiting.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from graft.errors import GraftError, Reason

from services.common.logs import get_logger
from services.registry.catalogue.base import Catalogue, EventFilter
from services.registry.catalogue.rows import kind_of
from services.registry.domain import Event
from services.registry.pulse import Pulse

_BATCH = 128
_RECENT = 256
# Only a reader whose database failed waits that long; changes of this process wake it at once.
_RETRY_S = 1.0
_CLOSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Nothing up to its revision is left to come."""

    revision: int
    time: datetime


@dataclass(eq=False, slots=True)
class _Watcher:
    task: asyncio.Task[object] | None
    position: int


class ChangeFeed:
    """Tells any number of watchers of every change, in order.

    Args:
        catalogue: where the events are.
        changed: fired when there may be new ones.
        bookmark_interval_s: how long a watcher hears nothing before it gets a bookmark.
        seen: called once with each new event, for counting.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        changed: Pulse,
        bookmark_interval_s: float,
        seen: Callable[[Event], None],
    ) -> None:
        self._catalogue, self._changed, self._seen = catalogue, changed, seen
        self._bookmark_interval_s = bookmark_interval_s
        self._recent: deque[Event] = deque(maxlen=_RECENT)
        self._head = 0
        self._moved = Pulse()
        self._watchers: set[_Watcher] = set()
        self._closing = False
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to read."""
        self._head = await self._catalogue.revision()
        self._reader = asyncio.create_task(self._read_on())

    async def close(self) -> int:
        """Ends all watches, with UNAVAILABLE, within about a second, and the reader.

        Returns:
            How many had to be cut because their clients do not read.
        """
        self._closing = True
        self._moved.fire()
        stuck: set[asyncio.Task[object]] = set()
        tasks = [one.task for one in self._watchers if one.task is not None]
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=_CLOSE_S)
            for task in stuck:
                task.cancel()
        if self._reader is not None:
            self._reader.cancel()
            with suppress(asyncio.CancelledError):
                await self._reader
        return len(stuck)

    @property
    def watchers(self) -> int:
        """How many watch now."""
        return len(self._watchers)

    @property
    def lag(self) -> int:
        """Events that the slowest watcher has not been sent."""
        # A watch that begins may be at events that the reader is about to read: it is not behind.
        return max((0, *(self._head - one.position for one in tuple(self._watchers))))

    async def follow(
        self, which: EventFilter, after: int
    ) -> AsyncGenerator[Event | Bookmark, None]:
        """Events after a revision without end.

        A bookmark follows what was stored already, and then comes whenever nothing else did for
        the bookmark interval.

        Raises:
            GraftError: REVISION_COMPACTED for a revision that this registry never had, or after
                which events are not kept any more, also when that overtakes a slow watcher;
                UNAVAILABLE when the registry stops.
        """
        target = await self._catalogue.revision()
        if after > target:
            raise _from_elsewhere(after, target)
        watcher = _Watcher(asyncio.current_task(), after)
        self._watchers.add(watcher)
        try:
            async with aclosing(self._follow(watcher, target, which)) as news:
                async for one in news:
                    yield one
        finally:
            self._watchers.discard(watcher)

    async def _follow(
        self, watcher: _Watcher, target: int, which: EventFilter
    ) -> AsyncGenerator[Event | Bookmark, None]:
        clock = asyncio.get_running_loop().time
        replayed, told_s = False, clock()
        while True:
            moved = self._moved.next()
            if self._closing:
                raise _stopping(watcher.position)
            before = watcher.position
            events, reached = await self._after(before, which)
            for event in events:
                yield event
                watcher.position, told_s = event.revision, clock()
            watcher.position = max(watcher.position, reached)
            replayed_now = not replayed and watcher.position >= target
            # Also while only other namespaces change: who resumes must not begin far back.
            if replayed_now or clock() - told_s >= self._bookmark_interval_s:
                yield Bookmark(watcher.position, datetime.now(UTC))
                replayed, told_s = replayed or replayed_now, clock()
            if watcher.position == before:
                await _wait(moved, told_s + self._bookmark_interval_s)

    async def _after(self, position: int, which: EventFilter) -> tuple[Sequence[Event], int]:
        """Some of the next events, and the revision up to which they are all."""
        head = self._head
        if position >= head:
            return (), position
        if self._recent and self._recent[0].revision <= position + 1:
            # Revisions have no gaps, so the distance is the index.
            begin = position + 1 - self._recent[0].revision
            fresh = list(islice(self._recent, begin, begin + _BATCH))
            chosen = [one for one in fresh if _is_wanted(one, which)]
            return chosen, fresh[-1].revision
        stored = await self._catalogue.events(position, _BATCH, which)
        return stored, stored[-1].revision if len(stored) == _BATCH else max(
            head, stored[-1].revision if stored else 0
        )

    async def _read_on(self) -> None:
        failed = False
        while True:
            changed = self._changed.next()
            try:
                events = await self._catalogue.events(self._head, _BATCH)
                failed = False
            except Exception as error:
                if isinstance(error, GraftError) and error.reason is Reason.REVISION_COMPACTED:
                    await self._begin_anew()
                    continue
                if not failed:
                    get_logger().error("events cannot be read; trying on", exc_info=error)
                failed = True
                await asyncio.sleep(_RETRY_S)
                continue
            if events:
                self._take(events)
            if len(events) < _BATCH:
                await changed.wait()

    async def _begin_anew(self) -> None:
        """Goes on from now, after others let go of what this reader has not read.

        Watchers that had not read it either find that out from the database themselves.
        """
        self._recent.clear()
        with suppress(GraftError):
            self._head = await self._catalogue.revision()
        self._moved.fire()

    def _take(self, events: Sequence[Event]) -> None:
        self._recent.extend(events)
        self._head = events[-1].revision
        for event in events:
            self._seen(event)
        self._moved.fire()


def _is_wanted(event: Event, which: EventFilter) -> bool:
    return (
        which.namespace in (None, event.namespace)
        and which.parent in (None, event.parent)
        and (not which.kinds or kind_of(event.resource) in which.kinds)
    )


async def _wait(moved: asyncio.Event, until_s: float) -> None:
    """Waits for a change, at most until a time of the loop's clock."""
    with suppress(TimeoutError):
        async with asyncio.timeout_at(until_s):
            await moved.wait()


def _from_elsewhere(after: int, newest: int) -> GraftError:
    return GraftError(
        Reason.REVISION_COMPACTED,
        f"Revision {after} is not of this registry, whose newest is {newest}",
        next_step="List again (ListAliases tells its revision) and watch from there.",
        revision=newest,
    )


def _stopping(position: int) -> GraftError:
    return GraftError(
        Reason.UNAVAILABLE,
        "The registry is stopping",
        next_step=f"Watch again after revision {position} when it is back.",
        revision=position,
    )
