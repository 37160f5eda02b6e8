"""What nothing needs, in SQL: versions whose undelete window is over, and blobs without a reason to stay.

A blob stays because a version that is not purged has it, because a lease holds it, or because it was
uploaded or asked for a short time ago. Everything here takes turns with commits and leases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from graft.names import version_name
from sqlalchemy import ColumnElement, Table, and_, exists, func, not_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import rows
from services.registry.catalogue.blob_index import DELETING, PRESENT
from services.registry.catalogue.change import Change
from services.registry.catalogue.database import Database
from services.registry.catalogue.lives import purge, purge_versions
from services.registry.catalogue.tables import (
    adapters,
    alias_moves,
    bases,
    blobs,
    lease_targets,
    version_files,
    versions,
)
from services.registry.domain import Canary

# Blobs that are marked in one change, and rows that are read at once.
BATCH = 500
_WHY = "its undelete window is over"


@dataclass(frozen=True, slots=True)
class Garbage:
    """A blob that nothing needs."""

    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Kept:
    """How many blobs stay, by the first reason that they have."""

    by_versions: int
    by_leases: int
    by_age: int


class Collection:
    """What of a catalogue may go.

    Args:
        database: runs the transactions.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def expired(self, now: datetime, history_since: datetime) -> list[str]:
        """Names of versions, then adapters, then bases, that may be purged by now.

        history_since: what an alias named since then stays.
        """
        return await self._database.snapshot(
            lambda connection: _expired(connection, rows.to_us(now), rows.to_us(history_since))
        )

    async def purge_expired(self, name: str, now: datetime, history_since: datetime) -> list[str]:
        """Purges one of expired(), if it still may be; returns the names of versions that it ended."""

        async def work(change: Change) -> bool:
            times = rows.to_us(now), rows.to_us(history_since)
            if name not in await _expired(change.connection, *times, only=name):
                return False
            await purge(change, name, _WHY)
            return True

        versions_of = await self.files_of([name])
        if not await self._database.change(work):
            return []
        if "/versions/" not in name:
            await self.finish_purge(name)
        return sorted(versions_of)

    async def half_purged(self) -> list[str]:
        """Adapters and bases that are purged, with versions that are not: after a crash."""

        async def read(connection: AsyncConnection) -> list[str]:
            found: list[str] = []
            for owner in (adapters, bases):
                left = exists().where(
                    versions.c.parent == owner.c.name, versions.c.purge_time_us.is_(None)
                )
                query = select(owner.c.name).where(owner.c.purge_time_us.is_not(None), left)
                found += (await connection.scalars(query)).all()
            return found

        return await self._database.snapshot(read)

    async def finish_purge(self, parent: str) -> None:
        """Purges the versions of a purged adapter or base."""
        while await self._database.change(lambda change: purge_versions(change, parent, _WHY)):
            pass

    async def files_of(self, names: Sequence[str]) -> dict[str, set[str]]:
        """Digests of the files of versions that are not purged, by version; a parent means all of its."""

        async def read(connection: AsyncConnection) -> dict[str, set[str]]:
            found: dict[str, set[str]] = {}
            for name in names:
                parent, _, number = name.partition("/versions/")
                query = select(version_files).where(version_files.c.parent == parent)
                if number:
                    query = query.where(version_files.c.number == int(number))
                for row in await connection.execute(query):
                    version = version_name(row.parent, row.number)
                    found.setdefault(version, set()).add(row.digest)
            return found

        return await self._database.snapshot(read)

    async def garbage(self, untouched_since: datetime, after: str) -> list[Garbage]:
        """The next blobs that nothing needs, in the order of their digests."""

        async def read(connection: AsyncConnection) -> list[Garbage]:
            query = (
                select(blobs.c.digest, blobs.c.size_bytes)
                .where(_unneeded(untouched_since), blobs.c.digest > after)
                .order_by(blobs.c.digest)
                .limit(BATCH)
            )
            return [Garbage(row.digest, row.size_bytes) for row in await connection.execute(query)]

        return await self._database.read(read)

    async def mark(self, found: Sequence[Garbage], untouched_since: datetime) -> None:
        """Says that blobs do not exist any more: those that still nothing needs.

        Ordered with commits and leases, which see what is there in their own changes.
        """

        async def work(change: Change) -> None:
            await change.connection.execute(
                update(blobs)
                .where(
                    blobs.c.digest.in_([one.digest for one in found]), _unneeded(untouched_since)
                )
                .values(state=DELETING)
            )

        await self._database.change(work)

    async def marked(self, after: str) -> list[Garbage]:
        """The next blobs whose bytes are to be removed, also those that a crash left so."""

        async def read(connection: AsyncConnection) -> list[Garbage]:
            query = (
                select(blobs.c.digest, blobs.c.size_bytes)
                .where(blobs.c.state == DELETING, blobs.c.digest > after)
                .order_by(blobs.c.digest)
                .limit(BATCH)
            )
            return [Garbage(row.digest, row.size_bytes) for row in await connection.execute(query)]

        return await self._database.read(read)

    async def shared(self, digests: Sequence[str], among: Sequence[str]) -> set[str]:
        """Those of the digests that a version which is not among those has too."""

        async def read(connection: AsyncConnection) -> set[str]:
            query = select(version_files).where(version_files.c.digest.in_(digests))
            return {
                row.digest
                for row in await connection.execute(query)
                if version_name(row.parent, row.number) not in gone
            }

        gone = set(among)
        return await self._database.read(read)

    async def unneeded(self, digests: Sequence[str], untouched_since: datetime) -> list[Garbage]:
        """Those of the digests that nothing but versions needs."""

        async def read(connection: AsyncConnection) -> list[Garbage]:
            query = select(blobs.c.digest, blobs.c.size_bytes).where(
                blobs.c.digest.in_(digests),
                blobs.c.state == PRESENT,
                blobs.c.touched_us < rows.to_us(untouched_since),
                not_(_leased()),
            )
            return [Garbage(row.digest, row.size_bytes) for row in await connection.execute(query)]

        return await self._database.read(read)

    async def known(self, digests: Sequence[str]) -> set[str]:
        """Those of the digests that have a row, whatever it says."""

        async def read(connection: AsyncConnection) -> set[str]:
            query = select(blobs.c.digest).where(blobs.c.digest.in_(digests))
            return set(await connection.scalars(query))

        return await self._database.read(read)

    async def kept(self, untouched_since: datetime) -> Kept:
        """How many blobs stay, and why."""

        async def read(connection: AsyncConnection) -> Kept:
            by = {}
            for reason, holds in (
                ("by_versions", _versioned()),
                ("by_leases", and_(_leased(), not_(_versioned()))),
                (
                    "by_age",
                    and_(
                        blobs.c.touched_us >= rows.to_us(untouched_since),
                        not_(_leased()),
                        not_(_versioned()),
                    ),
                ),
            ):
                query = select(func.count()).select_from(blobs)
                counted = await connection.scalar(query.where(blobs.c.state == PRESENT, holds))
                by[reason] = int(counted or 0)
            return Kept(**by)

        return await self._database.snapshot(read)


def _versioned() -> ColumnElement[bool]:
    return exists().where(version_files.c.digest == blobs.c.digest)


def _leased() -> ColumnElement[bool]:
    return exists().where(lease_targets.c.target == blobs.c.digest)


def _unneeded(untouched_since: datetime) -> ColumnElement[bool]:
    return and_(
        blobs.c.state == PRESENT,
        blobs.c.touched_us < rows.to_us(untouched_since),
        not_(_versioned()),
        not_(_leased()),
    )


async def _expired(
    connection: AsyncConnection, now_us: int, since_us: int, only: str = ""
) -> list[str]:
    found: list[str] = []
    numbered = _over(versions, now_us)
    if only:
        parent, _, number = only.partition("/versions/")
        numbered &= (versions.c.parent == parent) & (versions.c.number == int(number or 0))
    query = select(versions.c.parent, versions.c.number).where(numbered)
    for row in await connection.execute(query.order_by(versions.c.parent, versions.c.number)):
        if not await _named(connection, row.parent, since_us, row.number):
            found.append(version_name(row.parent, row.number))
    for owner in (adapters, bases):
        over = _over(owner, now_us)
        if only:
            over &= owner.c.name == only
        for name in (await connection.scalars(select(owner.c.name).where(over))).all():
            in_use = owner is bases and await connection.scalar(
                select(adapters.c.name)
                .where(adapters.c.base == name, adapters.c.purge_time_us.is_(None))
                .limit(1)
            )
            if not in_use and not await _named(connection, name, since_us):
                found.append(name)
    if not found:
        return found
    leased = await _leased_versions(connection)
    return [name for name in found if not _is_leased(name, leased)]


def _over(table: Table, now_us: int) -> ColumnElement[bool]:
    return and_(table.c.purge_time_us.is_(None), table.c.expire_time_us <= now_us)


async def _named(
    connection: AsyncConnection, parent: str, since_us: int, number: int | None = None
) -> bool:
    """Whether an alias named the version, or any of the parent's, since then."""
    recent = (alias_moves.c.parent == parent) & (alias_moves.c.update_time_us >= since_us)
    if number is None:
        return (
            await connection.scalar(select(alias_moves.c.name).where(recent).limit(1)) is not None
        )
    mine = or_(
        alias_moves.c.version == number,
        alias_moves.c.previous_version == number,
        alias_moves.c.canaries != "[]",
    )
    for row in await connection.execute(select(alias_moves).where(recent, mine)):
        if number in (row.version, row.previous_version):
            return True
        if number in (one.version for one in rows.load(row.canaries, list[Canary])):
            return True
    return False


async def _leased_versions(connection: AsyncConnection) -> set[str]:
    query = select(lease_targets.c.target).where(lease_targets.c.target.like("namespaces/%"))
    return set(await connection.scalars(query))


def _is_leased(name: str, leased: set[str]) -> bool:
    if "/versions/" in name:
        return name in leased
    return any(target.startswith(f"{name}/versions/") for target in leased)
