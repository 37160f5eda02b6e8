"""Versions in SQL."""

from __future__ import annotations

from graft.names import version_name
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import rows
from services.registry.catalogue.tables import adapters, aliases, bases, versions
from services.registry.domain import (
    Version,
)
from services.registry.errors import deleted, not_found


async def read_version(connection: AsyncConnection, parent: str, number: int) -> Version:
    """Raises VERSION_NOT_FOUND."""
    row = (
        await connection.execute(
            select(versions).where(versions.c.parent == parent, versions.c.number == number)
        )
    ).one_or_none()
    if row is None:
        raise not_found("version", version_name(parent, number))
    return rows.version_of(row)


async def read_version_by_alias(connection: AsyncConnection, alias: str) -> Version:
    """Raises ALIAS_NOT_FOUND; DELETED when the alias' adapter or base is."""
    names = (aliases.c.parent == versions.c.parent) & (aliases.c.version == versions.c.number)
    owner = bases if "/bases/" in alias else adapters
    row = (
        await connection.execute(
            select(
                versions,
                owner.c.delete_time_us.label("owner_delete_time_us"),
                owner.c.purge_time_us.label("owner_purge_time_us"),
            )
            .join(aliases, names)
            .join(owner, owner.c.name == aliases.c.parent)
            .where(aliases.c.name == alias)
        )
    ).one_or_none()
    if row is None:
        raise not_found("alias", alias)
    if row.owner_delete_time_us is not None:
        life = rows.ended(row.owner_delete_time_us, row.owner_purge_time_us)
        raise deleted("base" if owner is bases else "adapter", row.parent, life)
    return rows.version_of(row)
