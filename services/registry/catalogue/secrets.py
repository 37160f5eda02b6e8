"""Keys that all registry processes of one catalogue share."""

from __future__ import annotations

import secrets

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue.change import Change
from services.registry.catalogue.database import Database
from services.registry.catalogue.tables import secrets as table

_BYTES = 32


async def shared_secret(database: Database, name: str) -> bytes:
    """The key of that name, 32 bytes, made by whoever asks for it first."""
    found = await database.read(lambda connection: _read(connection, name))
    if found is None:
        found = await database.change(lambda change: _make(change, name))
    return bytes.fromhex(found)


async def _read(connection: AsyncConnection, name: str) -> str | None:
    value: str | None = await connection.scalar(select(table.c.value).where(table.c.name == name))
    return value


async def _make(change: Change, name: str) -> str:
    # Of several processes that start at once, one makes it.
    found = await _read(change.connection, name)
    if found is not None:
        return found
    value = secrets.token_hex(_BYTES)
    await change.connection.execute(insert(table).values(name=name, value=value))
    return value
