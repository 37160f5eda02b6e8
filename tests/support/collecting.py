"""A collector on a database, with clocks that a test sets and a store that it can look into."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from graft.digests import digest_bytes

from services.registry.blobs.base import BlobStore
from services.registry.blobs.memory import MemoryBlobStore
from services.registry.catalogue.base import Catalogue
from services.registry.catalogue.blob_index import BlobIndex
from services.registry.catalogue.collection import Collection
from services.registry.catalogue.database import Database
from services.registry.catalogue.leases import Leases
from services.registry.catalogue.lives import Lives
from services.registry.catalogue.locks import Locks
from services.registry.catalogue.sql import SqlCatalogue
from services.registry.collection.clock import LeaseClock
from services.registry.collection.collector import Collector, Rules
from services.registry.domain import Version
from services.registry.objects import Objects
from tests.support.catalogue import BASE, BOT, adapter, version

DAY = timedelta(days=1)


class Clocks:
    """The wall clock, as it was set off, and the steady clock in seconds."""

    def __init__(self) -> None:
        self.ahead, self.steady_s = timedelta(0), 0.0

    def now(self) -> datetime:
        """The wall clock."""
        return datetime.now(UTC) + self.ahead

    def monotonic(self) -> float:
        """The steady clock."""
        return self.steady_s


class RealClocks(Clocks):
    """The clocks of this machine."""

    def monotonic(self) -> float:
        return time.monotonic()


class Registry:
    """What one registry process has of a catalogue and a store, without its server."""

    def __init__(
        self,
        database: Database,
        store: BlobStore | None = None,
        grace: timedelta = DAY,
        orphans: timedelta = DAY,
        longest_gap_s: float = 1000.0,
        clocks: Clocks | None = None,
    ) -> None:
        self.clocks = clocks or Clocks()
        self.database, self.store = database, store or MemoryBlobStore()
        self.catalogue: Catalogue = SqlCatalogue(database)
        self.lives = Lives(database, 30 * DAY)
        self.leases = Leases(database)
        locks = Locks(database.engine)
        self.objects = Objects(self.store, BlobIndex(database, locks, fresh_s=0.0))
        self.collector = Collector(
            Collection(database),
            self.leases,
            LeaseClock(self.clocks.monotonic, longest_gap_s),
            self.store,
            self.objects,
            locks,
            Rules(grace, 90 * DAY, orphans),
            now=self.clocks.now,
        )

    async def begin(self) -> None:
        """Makes the base and the adapter bot."""
        await self.catalogue.create_base(BASE)
        await self.catalogue.create_adapter(adapter(), None)

    async def upload(self, data: bytes) -> str:
        """Stores a blob; returns its digest."""
        digest = digest_bytes(data)
        upload = await self.objects.begin_upload(digest, len(data))
        if upload is not None:
            try:
                await upload.append(0, data)
                await upload.finish()
            finally:
                await upload.close()
        return digest

    async def commit(self, data: bytes, number: int, parent: str = BOT) -> Version:
        """Uploads a blob and commits a version of it; number makes its digest."""
        digest = await self.upload(data)
        return await self.catalogue.commit_version(version(number, parent, blob=digest), None)

    async def stored(self, digest: str) -> bool:
        """Whether the bytes are in the store."""
        return (await self.store.status(digest)).complete

    async def exists(self, digest: str) -> bool:
        """Whether a client is told that the blob is there."""
        return not await self.objects.missing([digest])
