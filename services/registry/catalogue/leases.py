"""Leases in SQL: who needs which versions and blobs for how long after each renewal.

A lease ends when it is released, or removed by whoever watched it long enough: see LeaseClock.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from graft.errors import GraftError, Reason
from sqlalchemy import Select, delete, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import rows
from services.registry.catalogue.change import Change
from services.registry.catalogue.commits import read_version
from services.registry.catalogue.database import Database
from services.registry.catalogue.tables import lease_targets, leases
from services.registry.domain import Page
from services.registry.errors import deleted


@dataclass(frozen=True, slots=True)
class NewLease:
    """A lease to be acquired; targets are names of versions and digests.

    With a request_id the same holder's repeated request is answered with the same lease.
    """

    holder: str
    purpose: str
    targets: tuple[str, ...]
    ttl_s: float
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease. expire_time is informative, by the clock of whoever renewed it."""

    id: str
    holder: str
    purpose: str
    targets: tuple[str, ...]
    ttl_s: float
    create_time: datetime
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class LeaseSeen:
    """A lease as somebody sees it who waits for its end; renewals counts them."""

    id: str
    renewals: int
    ttl_s: float


class Leases:
    """The leases of a catalogue.

    Args:
        database: runs the transactions.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def acquire(self, new: NewLease) -> Lease:
        """Makes a lease; it holds when this returns.

        Raises:
            GraftError: VERSION_NOT_FOUND; DELETED for a purged version; REQUEST_ID_REUSED.
        """
        return await self._database.change(lambda change: _acquire(change, new))

    async def renew(self, lease: str, targets: Sequence[str]) -> Lease:
        """Begins its time to live anew; targets replace what it holds, where there are any.

        Raises:
            GraftError: LEASE_NOT_FOUND; as acquire for targets that it did not hold.
        """
        return await self._database.change(lambda change: _renew(change, lease, targets))

    async def release(self, lease: str) -> None:
        """Ends a lease, if it is there."""

        async def work(change: Change) -> None:
            await _remove(change, [lease])

        await self._database.change(work)

    async def list(self, limit: int, after: str | None, target: str = "") -> Page[Lease]:
        """Leases, oldest first, of all targets or of one."""
        query = select(leases).order_by(leases.c.create_time_us, leases.c.id).limit(limit + 1)
        if target:
            holders = select(lease_targets.c.lease).where(lease_targets.c.target == target)
            query = query.where(leases.c.id.in_(holders))
        if after is not None:
            time_us, _, lease = after.partition("-")
            query = query.where(
                tuple_(leases.c.create_time_us, leases.c.id) > tuple_(int(time_us), lease)
            )
        return await self._database.snapshot(lambda connection: _page(connection, query, limit))

    async def seen(self) -> Sequence[LeaseSeen]:
        """All leases, for whoever watches them end."""

        async def read(connection: AsyncConnection) -> list[LeaseSeen]:
            query = select(leases.c.id, leases.c.renewals, leases.c.ttl_ms)
            return [
                LeaseSeen(row.id, row.renewals, row.ttl_ms / 1000)
                for row in await connection.execute(query)
            ]

        return await self._database.read(read)

    async def expire(self, ended: Sequence[LeaseSeen]) -> int:
        """Removes leases that were not renewed since they were seen so; returns how many."""

        async def work(change: Change) -> int:
            renewals = {one.id: one.renewals for one in ended}
            query = select(leases.c.id, leases.c.renewals).where(leases.c.id.in_(sorted(renewals)))
            same = [
                row.id
                for row in await change.connection.execute(query)
                if row.renewals == renewals[row.id]
            ]
            await _remove(change, same)
            return len(same)

        return await self._database.change(work) if ended else 0


async def _acquire(change: Change, new: NewLease) -> Lease:
    lease = _id(new)
    row = await _find(change.connection, lease)
    if row is not None:
        if (row.purpose, row.ttl_ms) != (new.purpose, _ms(new.ttl_s)):
            raise GraftError(
                Reason.REQUEST_ID_REUSED,
                f"The request id {new.request_id!r} was used before for another lease",
                next_step="Make a new request id for every lease; repeat one only to try again.",
                request_id=new.request_id,
            )
        return _lease_of(row, await _targets(change.connection, lease))
    await _check_targets(change.connection, new.targets)
    now_us = rows.to_us(change.now)
    values = {
        "id": lease,
        "holder": new.holder,
        "purpose": new.purpose,
        "ttl_ms": _ms(new.ttl_s),
        "renewals": 0,
        "create_time_us": now_us,
        "renew_time_us": now_us,
    }
    await change.connection.execute(insert(leases).values(values))
    await _add_targets(change, lease, new.targets)
    row = await _find(change.connection, lease)
    return _lease_of(row, sorted(set(new.targets)))


async def _renew(change: Change, lease: str, targets: Sequence[str]) -> Lease:
    row = await _find(change.connection, lease)
    if row is None:
        raise GraftError(
            Reason.LEASE_NOT_FOUND,
            f"There is no lease leases/{lease}: it ended, or was released",
            next_step="Acquire a new one, and check with FindMissing that the bytes are still there.",
            resource=f"leases/{lease}",
        )
    held = await _targets(change.connection, lease)
    if targets:
        held = await _replace_targets(change, lease, held, targets)
    await change.connection.execute(
        update(leases)
        .where(leases.c.id == lease)
        .values(renewals=row.renewals + 1, renew_time_us=rows.to_us(change.now))
    )
    return _lease_of(await _find(change.connection, lease), held)


async def _replace_targets(
    change: Change, lease: str, held: Sequence[str], targets: Sequence[str]
) -> list[str]:
    added = sorted(set(targets) - set(held))
    await _check_targets(change.connection, added)
    wanted = set(targets) | await _purged_files(change.connection, set(targets) & set(held))
    dropped = sorted(set(held) - wanted)
    if dropped:
        await change.connection.execute(
            delete(lease_targets).where(
                lease_targets.c.lease == lease, lease_targets.c.target.in_(dropped)
            )
        )
    await _add_targets(change, lease, sorted(wanted - set(held)))
    return sorted(wanted)


async def _purged_files(connection: AsyncConnection, targets: set[str]) -> set[str]:
    """Digests that only a lease keeps, because it holds a version that was purged meanwhile."""
    found: set[str] = set()
    for name in targets:
        parent, _, number = name.partition("/versions/")
        if number:
            version = await read_version(connection, parent, int(number))
            if version.life.purge_time is not None:
                found.update(file.digest for file in version.manifest.files)
    return found


async def _check_targets(connection: AsyncConnection, targets: Sequence[str]) -> None:
    for name in targets:
        parent, _, number = name.partition("/versions/")
        if number:
            version = await read_version(connection, parent, int(number))
            if version.life.purge_time is not None:
                raise deleted("version", name, version.life)


async def _add_targets(change: Change, lease: str, targets: Sequence[str]) -> None:
    if targets:
        added = [{"lease": lease, "target": target} for target in sorted(set(targets))]
        await change.connection.execute(insert(lease_targets), added)


async def _remove(change: Change, found: Sequence[str]) -> None:
    if found:
        await change.connection.execute(
            delete(lease_targets).where(lease_targets.c.lease.in_(found))
        )
        await change.connection.execute(delete(leases).where(leases.c.id.in_(found)))


async def _find(connection: AsyncConnection, lease: str) -> rows.AnyRow | None:
    return (await connection.execute(select(leases).where(leases.c.id == lease))).one_or_none()


async def _targets(connection: AsyncConnection, lease: str) -> list[str]:
    query = select(lease_targets.c.target).where(lease_targets.c.lease == lease)
    return sorted(await connection.scalars(query))


async def _page(connection: AsyncConnection, query: Select[tuple[object, ...]], limit: int) -> Page[Lease]:  # fmt: skip
    found = (await connection.execute(query)).all()
    shown = found[:limit]
    held: dict[str, list[str]] = {row.id: [] for row in shown}
    wanted = select(lease_targets).where(lease_targets.c.lease.in_(sorted(held)))
    for row in await connection.execute(wanted.order_by(lease_targets.c.target)):
        held[row.lease].append(row.target)
    items = [_lease_of(row, held[row.id]) for row in shown]
    if len(found) <= limit:
        return Page(items, None)
    return Page(items, f"{shown[-1].create_time_us}-{shown[-1].id}")


def _lease_of(row: rows.AnyRow | None, targets: Sequence[str]) -> Lease:
    assert row is not None, "it was just written or read"
    ttl = timedelta(milliseconds=row.ttl_ms)
    return Lease(
        id=row.id,
        holder=row.holder,
        purpose=row.purpose,
        targets=tuple(targets),
        ttl_s=row.ttl_ms / 1000,
        create_time=rows.from_us(row.create_time_us),
        expire_time=rows.from_us(row.renew_time_us) + ttl,
    )


def _id(new: NewLease) -> str:
    if not new.request_id:
        return uuid.uuid4().hex
    return hashlib.sha256(f"{new.holder}\n{new.request_id}".encode()).hexdigest()[:32]


def _ms(ttl_s: float) -> int:
    return round(ttl_s * 1000)
