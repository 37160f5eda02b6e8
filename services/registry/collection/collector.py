"""Removes what nothing needs while everything else goes on: one collector at a time, after a crash the next.

What may go is marked in the catalogue first, in turns with commits and leases; then each blob's bytes
are removed under that blob's lock, and last its row.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from graft.errors import GraftError, Reason

from services.common.caller import CALLER, Caller
from services.common.logs import get_logger
from services.registry.blobs.base import BlobStore
from services.registry.catalogue.collection import BATCH, Collection, Garbage, Kept
from services.registry.catalogue.leases import Leases
from services.registry.catalogue.locks import Locks
from services.registry.collection.clock import LeaseClock
from services.registry.objects import Objects

_LOCK = "collector"
_ACTOR = "collector"
# Blobs whose bytes are removed at once.
_AT_ONCE = 8
_MOST_DIGESTS = 1000


@dataclass(frozen=True, slots=True)
class Rules:
    """For how long what nobody seems to need stays.

    Attributes:
        grace: blobs that were uploaded or asked for.
        history: versions that an alias named.
        orphans: bytes without a row, and partial uploads that nobody goes on with.
    """

    grace: timedelta
    history: timedelta
    orphans: timedelta


@dataclass(slots=True)
class Report:
    """What a collection did, or would do. digests are the first thousand."""

    removed_blobs: int = 0
    removed_bytes: int = 0
    removed_uploads: int = 0
    digests: list[str] = field(default_factory=list)
    purged_versions: list[str] = field(default_factory=list)
    kept: Kept = field(default_factory=lambda: Kept(0, 0, 0))

    def count(self, digest: str, size_bytes: int) -> None:
        """A blob goes."""
        self.removed_blobs += 1
        self.removed_bytes += size_bytes
        if len(self.digests) < _MOST_DIGESTS:
            self.digests.append(digest)


class Collector:
    """Collects.

    Args:
        collection: what of the catalogue may go.
        leases: who needs what.
        clock: says which of them have ended.
        store: where the bytes are.
        objects: removes them.
        locks: of the catalogue, so that one process collects at a time.
        rules: what stays for a time.
        removed: told the size in bytes of each blob that was removed.
        now: the wall clock, for what people count in days.
    """

    def __init__(
        self,
        collection: Collection,
        leases: Leases,
        clock: LeaseClock,
        store: BlobStore,
        objects: Objects,
        locks: Locks,
        rules: Rules,
        removed: Callable[[int], object] = lambda _: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._collection, self._leases, self._clock = collection, leases, clock
        self._store, self._objects, self._locks = store, objects, locks
        self._rules, self._removed, self._now = rules, removed, now

    async def watch_leases(self) -> int:
        """Looks at all leases and removes those that have ended; returns how many."""
        ended = self._clock.look(await self._leases.seen())
        return await self._leases.expire(ended)

    async def collect(self, dry_run: bool = False) -> Report:
        """Removes what nothing needs, or only says what that is.

        Raises:
            GraftError: UNAVAILABLE when another collection runs.
        """
        async with self._alone():
            if dry_run:
                return await self._preview()
            await self.watch_leases()
            report = Report()
            await self._purge(report)
            await self._mark()
            await self._remove_marked(report)
            await self._remove_orphans(report)
            report.removed_uploads = await self._store.expire_uploads(
                self._rules.orphans.total_seconds()
            )
            report.kept = await self._collection.kept(self._now() - self._rules.grace)
        return report

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        async with self._locks.try_hold(_LOCK) as taken:
            if not taken:
                raise GraftError(
                    Reason.UNAVAILABLE,
                    "Another collection is running",
                    next_step="Wait for it: it removes the same.",
                )
            told = CALLER.set(Caller(_ACTOR, "CollectGarbage"))
            try:
                yield
            finally:
                CALLER.reset(told)

    async def _purge(self, report: Report) -> None:
        now = self._now()
        since = now - self._rules.history
        for name in await self._collection.expired(now, since):
            report.purged_versions += await self._collection.purge_expired(name, now, since)
        for parent in await self._collection.half_purged():
            await self._collection.finish_purge(parent)

    async def _mark(self) -> None:
        untouched_since, after = self._now() - self._rules.grace, ""
        while found := await self._collection.garbage(untouched_since, after):
            await self._collection.mark(found, untouched_since)
            after = found[-1].digest

    async def _remove_marked(self, report: Report) -> None:
        after = ""
        while found := await self._collection.marked(after):
            await self._remove(found, self._objects.remove, report)
            after = found[-1].digest

    async def _remove_orphans(self, report: Report) -> None:
        async for found in self._orphans():
            await self._remove(found, self._objects.remove_orphan, report)

    async def _orphans(self) -> AsyncIterator[list[Garbage]]:
        """Bytes without a row: a crash came between the two."""
        after, oldest_s = "", self._rules.orphans.total_seconds()
        while page := await self._store.stored(after, BATCH):
            after = page[-1].digest
            old = [one for one in page if one.age_s >= oldest_s]
            known = await self._collection.known([one.digest for one in old])
            yield [Garbage(one.digest, one.size_bytes) for one in old if one.digest not in known]

    async def _remove(
        self,
        found: Sequence[Garbage],
        remove: Callable[[str], Awaitable[bool]],
        report: Report,
    ) -> None:
        for begin in range(0, len(found), _AT_ONCE):
            some = found[begin : begin + _AT_ONCE]
            done = await asyncio.gather(
                *(remove(one.digest) for one in some), return_exceptions=True
            )
            for one, outcome in zip(some, done, strict=True):
                if outcome is True:
                    report.count(one.digest, one.size_bytes)
                    self._removed(one.size_bytes)
                elif isinstance(outcome, GraftError | OSError):
                    # It stays marked: the next run tries again.
                    get_logger().warning("blob not removed", digest=one.digest, error=str(outcome))
                elif isinstance(outcome, BaseException):
                    raise outcome

    async def _preview(self) -> Report:
        report, now = Report(), self._now()
        untouched_since = now - self._rules.grace
        names = await self._collection.expired(now, now - self._rules.history)
        names += await self._collection.half_purged()
        files = await self._collection.files_of(names)
        report.purged_versions = sorted(files)
        report.kept = await self._collection.kept(untouched_since)
        for found in await self._freed(files, untouched_since):
            report.count(found.digest, found.size_bytes)
        freed = report.removed_blobs
        report.kept = Kept(report.kept.by_versions - freed, *_rest(report.kept))
        after = ""
        while page := await self._collection.garbage(untouched_since, after):
            after = page[-1].digest
            for one in page:
                report.count(one.digest, one.size_bytes)
        after = ""
        while page := await self._collection.marked(after):
            after = page[-1].digest
            for one in page:
                report.count(one.digest, one.size_bytes)
        async for page in self._orphans():
            for one in page:
                report.count(one.digest, one.size_bytes)
        return report

    async def _freed(self, files: dict[str, set[str]], untouched_since: datetime) -> list[Garbage]:
        """Blobs that purging these versions would free."""
        digests = sorted(set().union(*files.values()))
        found: list[Garbage] = []
        for begin in range(0, len(digests), BATCH):
            some = digests[begin : begin + BATCH]
            shared = await self._collection.shared(some, list(files))
            alone = [digest for digest in some if digest not in shared]
            found += await self._collection.unneeded(alone, untouched_since)
        return found


def _rest(kept: Kept) -> tuple[int, int]:
    return kept.by_leases, kept.by_age
