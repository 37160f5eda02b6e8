"""Which blobs exist, in SQL. Bytes are stored before their row is, and removed after it says so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue.database import Change, Database
from services.registry.catalogue.locks import Locks
from services.registry.catalogue.rows import to_us
from services.registry.catalogue.tables import blobs

PRESENT = "present"
DELETING = "deleting"
# Whoever asks for a blob keeps it for the grace time, less this: not every question is a write.
_FRESH_S = 600.0


async def present_digests(connection: AsyncConnection, digests: Iterable[str]) -> set[str]:
    """Those of the digests that exist."""
    query = select(blobs.c.digest).where(
        blobs.c.digest.in_(sorted(set(digests))), blobs.c.state == PRESENT
    )
    return set(await connection.scalars(query))


class BlobIndex:
    """The rows of the blobs.

    Args:
        database: runs the transactions.
        locks: of the same catalogue.
        fresh_s: for how long a blob that was asked for need not be noted again.
    """

    def __init__(
        self, database: Database, locks: Locks | None = None, fresh_s: float = _FRESH_S
    ) -> None:
        self._database, self._fresh_us = database, int(fresh_s * 1_000_000)
        self._locks = locks or Locks(database.engine)

    def hold(self, digest: str) -> AbstractAsyncContextManager[None]:
        """Nobody else makes this blob exist, or removes its bytes, during the block."""
        return self._locks.hold(f"blob {digest}")

    async def present(self, digests: Sequence[str]) -> set[str]:
        """Those of the digests that exist."""
        return await self._database.read(lambda connection: present_digests(connection, digests))

    async def touch(self, digests: Sequence[str]) -> set[str]:
        """Those of the digests that exist; they are kept for the grace time from now on."""
        wanted = sorted(set(digests))

        async def read(connection: AsyncConnection) -> dict[str, int]:
            query = select(blobs.c.digest, blobs.c.touched_us).where(
                blobs.c.digest.in_(wanted), blobs.c.state == PRESENT
            )
            return {row.digest: row.touched_us for row in await connection.execute(query)}

        found = await self._database.read(read)
        oldest_us = to_us(datetime.now(UTC)) - self._fresh_us
        stale = [digest for digest, touched_us in found.items() if touched_us <= oldest_us]
        if not stale:
            return set(found)

        async def work(change: Change) -> set[str]:
            await change.connection.execute(
                update(blobs)
                .where(blobs.c.digest.in_(stale), blobs.c.state == PRESENT)
                .values(touched_us=to_us(change.now))
            )
            return await present_digests(change.connection, found)

        return await self._database.change(work)

    async def register(self, digest: str, size_bytes: int) -> None:
        """Says that the bytes of a blob are stored, and that it was asked for now."""

        async def work(change: Change) -> None:
            values = {"size_bytes": size_bytes, "state": PRESENT, "touched_us": to_us(change.now)}
            done = await change.connection.execute(
                update(blobs).where(blobs.c.digest == digest).values(values)
            )
            if not done.rowcount:
                await change.connection.execute(insert(blobs).values(digest=digest, **values))

        await self._database.change(work)

    async def is_deleting(self, digest: str) -> bool:
        """Whether the blob's bytes are to be removed."""

        async def read(connection: AsyncConnection) -> bool:
            state = await connection.scalar(select(blobs.c.state).where(blobs.c.digest == digest))
            return bool(state == DELETING)

        return await self._database.read(read)

    async def forget(self, digest: str) -> bool:
        """Removes the row of a blob whose bytes were removed; says whether it was there."""

        async def work(change: Change) -> bool:
            gone = await change.connection.execute(
                delete(blobs).where(blobs.c.digest == digest, blobs.c.state == DELETING)
            )
            return bool(gone.rowcount)

        return await self._database.change(work)
