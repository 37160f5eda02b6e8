"""The one way to change a job: stored first, then told to everybody who waits for it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from graft.errors import GraftError, Reason

from services.trainer.jobs import Event, Job
from services.trainer.lifecycle import Decision
from services.trainer.metrics import TrainerMetrics
from services.trainer.store.base import Changed, JobStore, RequestKey

_PAGE = 500
T = TypeVar("T")


class Journal:
    """Stores changes and wakes whoever watches the job.

    A write that has begun is brought to its end even when its caller goes away, so that nothing is
    stored that nobody acts on.
    """

    def __init__(self, store: JobStore, metrics: TrainerMetrics) -> None:
        self.store = store
        self._metrics = metrics
        self._watchers: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._writes: set[asyncio.Task[Any]] = set()
        self._closing = False

    async def create(self, job: Job, key: RequestKey | None) -> tuple[Job, bool]:
        """JobStore.create, counted."""

        async def write() -> tuple[Job, bool]:
            stored, new = await self.store.create(job, key)
            if new:
                self._metrics.created(stored)
            return stored, new

        return await self._complete(write())

    async def change(self, name: str, decide: Decision) -> Changed:
        """JobStore.change, announced."""

        async def write() -> Changed:
            changed = await self.store.change(name, decide)
            if changed.events:
                self._metrics.changed(changed)
                self._wake(name)
            return changed

        return await self._complete(write())

    async def watch(self, name: str, after: int) -> AsyncIterator[Event]:
        """A job's events with sequences above after, until it has ended.

        Raises:
            GraftError: JOB_NOT_FOUND; UNAVAILABLE when the trainer shuts down meanwhile.
        """
        with self._watching(name) as wake:
            while True:
                wake.clear()
                job = await self.store.get(name)
                while after < job.last_sequence:
                    for event in await self.store.events(name, after, _PAGE):
                        after = event.sequence
                        yield event
                if job.ended:
                    return
                if self._closing:
                    raise _shutting_down(name, after)
                await wake.wait()

    async def close(self) -> None:
        """Ends every watch and waits for what is being written."""
        self._closing = True
        for name in list(self._watchers):
            self._wake(name)
        await asyncio.gather(*self._writes, return_exceptions=True)

    def _wake(self, name: str) -> None:
        for watcher in self._watchers.get(name, ()):
            watcher.set()

    @contextmanager
    def _watching(self, name: str) -> Iterator[asyncio.Event]:
        wake = asyncio.Event()
        self._watchers[name].add(wake)
        try:
            yield wake
        finally:
            self._watchers[name].discard(wake)
            if not self._watchers[name]:
                del self._watchers[name]

    async def _complete(self, write: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(write)
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return await asyncio.shield(task)


def _shutting_down(name: str, after: int) -> GraftError:
    return GraftError(
        Reason.UNAVAILABLE,
        "The trainer is shutting down; the job is kept",
        next_step=f"Watch {name} again after sequence {after}.",
        job=name,
        after_sequence=after,
    )
