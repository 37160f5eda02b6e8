"""Copies all rows of a catalogue into another, whichever database either of them is in."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue.tables import metadata, revisions, secrets

_BATCH = 500


async def copy_rows(source: AsyncConnection, target: AsyncConnection) -> None:
    """Fills an empty catalogue; both have the newest schema, and each is one transaction."""
    # Made by the first start of a registry; the keys of the one that is copied go on.
    await target.execute(delete(secrets))
    for table in metadata.sorted_tables:
        if table is not revisions:
            await _copy(source, target, table)
    counters = (await source.execute(select(revisions))).mappings().one()
    await target.execute(update(revisions).values(dict(counters)))


async def _copy(source: AsyncConnection, target: AsyncConnection, table: Table) -> None:
    batch: list[dict[str, Any]] = []
    result = await source.stream(select(table))
    async for row in result.mappings():
        batch.append(dict(row))
        if len(batch) == _BATCH:
            await target.execute(insert(table), batch)
            batch = []
    if batch:
        await target.execute(insert(table), batch)


async def first_filled(connection: AsyncConnection) -> str:
    """The name of a table with something in it; "" for a catalogue in which nothing ever was."""
    for table in metadata.sorted_tables:
        if table in (revisions, secrets):
            continue
        if await connection.scalar(select(func.count()).select_from(table)):
            return table.name
    if await connection.scalar(select(revisions.c.value)):
        return revisions.name
    return ""
