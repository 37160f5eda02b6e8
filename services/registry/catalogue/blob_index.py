"""Which blobs exist, in SQL. Bytes are stored before their row is, and removed after it says so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue.database import Change, Database
from services.registry.catalogue.rows import to_us
from services.registry.catalogue.tables import blobs

PRESENT = "present"
DELETING = "deleting"


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
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def present(self, digests: Sequence[str]) -> set[str]:
        """Those of the digests that exist."""
        return await self._database.read(lambda connection: present_digests(connection, digests))

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
