"""The stored events in SQL: reading them in order, and letting go of old ones."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from graft.errors import GraftError, Reason
from sqlalchemy import Select, delete, func, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import rows
from services.registry.catalogue.base import EventFilter
from services.registry.catalogue.database import Change
from services.registry.catalogue.tables import events, request_keys, revisions
from services.registry.domain import Event

# Bounds how long a change that removes old rows keeps others waiting.
_AT_ONCE = 5_000


async def read_events(
    connection: AsyncConnection, after: int, limit: int, which: EventFilter
) -> Sequence[Event]:
    """See Catalogue.events."""
    wanted = _wanted(after, which).order_by(events.c.revision).limit(limit).subquery()
    # One statement, so that nothing can be removed between the check and the reading.
    query = (
        select(revisions.c.compacted, wanted)
        .select_from(revisions.outerjoin(wanted, true()))
        .where(revisions.c.id == 1)
        .order_by(wanted.c.revision)
    )
    found = (await connection.execute(query)).all()
    if after < found[0].compacted:
        raise compacted(after, found[0].compacted + 1)
    return [rows.event_of(row) for row in found if row.revision is not None]


def _wanted(after: int, which: EventFilter) -> Select[tuple[object, ...]]:
    query = select(events).where(events.c.revision > after)
    if which.namespace is not None:
        query = query.where(events.c.namespace == which.namespace)
    if which.parent is not None:
        query = query.where(events.c.parent == which.parent)
    if which.kinds:
        query = query.where(events.c.kind.in_(sorted(which.kinds)))
    return query


async def compact_events(change: Change, before: datetime, keep: int) -> bool:
    """Removes some of the events that are older, but none of the last `keep`.

    Returns:
        Whether there may be more.
    """
    connection = change.connection
    row = (await connection.execute(select(revisions).where(revisions.c.id == 1))).one()
    # The first that stays, and not the last that goes: the clocks of two processes differ.
    first_fresh = await connection.scalar(
        select(events.c.revision)
        .where(events.c.time_us >= rows.to_us(before))
        .order_by(events.c.revision)
        .limit(1)
    )
    oldest_kept = row.value + 1 if first_fresh is None else first_fresh
    last = min(oldest_kept - 1, row.value - keep)
    until = min(last, row.compacted + _AT_ONCE)
    if until <= row.compacted:
        return False
    await connection.execute(delete(events).where(events.c.revision <= until))
    await connection.execute(update(revisions).where(revisions.c.id == 1).values(compacted=until))
    return bool(until < last)


async def forget_requests(change: Change, before: datetime) -> bool:
    """Removes some of the request keys that are older. Returns whether there may be more."""
    times = (
        select(request_keys.c.time_us)
        .where(request_keys.c.time_us < rows.to_us(before))
        .order_by(request_keys.c.time_us)
        .limit(_AT_ONCE)
        .subquery()
    )
    last = await change.connection.scalar(select(func.max(times.c.time_us)))
    if last is None:
        return False
    removed = await change.connection.execute(
        delete(request_keys).where(request_keys.c.time_us <= last)
    )
    return int(removed.rowcount) >= _AT_ONCE


def compacted(after: int, oldest: int) -> GraftError:
    """REVISION_COMPACTED for a watch after a revision whose next event is not kept any more."""
    return GraftError(
        Reason.REVISION_COMPACTED,
        f"What changed after revision {after} is not kept any more: the oldest event is {oldest}",
        next_step="List again (ListAliases tells its revision) and watch from there.",
        revision=oldest - 1,
        oldest_revision=oldest,
    )
