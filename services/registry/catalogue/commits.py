"""Versions in SQL."""

from __future__ import annotations

from graft.names import parse_name, version_name
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import rows
from services.registry.catalogue.base import NewVersion, RequestKey
from services.registry.catalogue.database import Change
from services.registry.catalogue.models import read_adapter
from services.registry.catalogue.requests import find_answer, keep_answer
from services.registry.catalogue.tables import adapters, aliases, versions
from services.registry.domain import Version
from services.registry.errors import not_found


async def find_committed(
    connection: AsyncConnection, adapter: str, key: RequestKey | None
) -> Version | None:
    """See Catalogue.find_committed."""
    namespace = parse_name(adapter, "namespaces/{namespace}/adapters/{adapter}")["namespace"]
    answered = await find_answer(connection, namespace, key)
    assert answered is None or isinstance(answered, Version), "the hash holds the kind of request"
    return answered


async def read_version(connection: AsyncConnection, adapter: str, number: int) -> Version:
    """Raises VERSION_NOT_FOUND."""
    row = (
        await connection.execute(
            select(versions).where(versions.c.adapter == adapter, versions.c.number == number)
        )
    ).one_or_none()
    if row is None:
        raise not_found("version", version_name(adapter, number))
    return rows.version_of(row)


async def read_version_by_alias(connection: AsyncConnection, alias: str) -> Version:
    """Raises ALIAS_NOT_FOUND."""
    names = (aliases.c.adapter == versions.c.adapter) & (aliases.c.version == versions.c.number)
    row = (
        await connection.execute(
            select(versions).join(aliases, names).where(aliases.c.name == alias)
        )
    ).one_or_none()
    if row is None:
        raise not_found("alias", alias)
    return rows.version_of(row)


async def commit_version(change: Change, new: NewVersion, key: RequestKey | None) -> Version:
    """See Catalogue.commit_version."""
    connection = change.connection
    namespace = parse_name(new.adapter, "namespaces/{namespace}/adapters/{adapter}")["namespace"]
    answered = await find_committed(connection, new.adapter, key)
    if answered is not None:
        return answered
    row = (
        await connection.execute(
            select(versions).where(
                versions.c.adapter == new.adapter, versions.c.digest == new.digest
            )
        )
    ).one_or_none()
    version = rows.version_of(row) if row is not None else await _add(change, namespace, new)
    await keep_answer(change, namespace, key, version)
    return version


async def _add(change: Change, namespace: str, new: NewVersion) -> Version:
    latest = (await read_adapter(change.connection, new.adapter)).latest_version
    version = Version(new.adapter, latest + 1, new.digest, new.manifest, new.report, change.now)
    await change.connection.execute(insert(versions).values(rows.version_row(version)))
    await change.connection.execute(
        update(adapters).where(adapters.c.name == new.adapter).values(latest_version=version.number)
    )
    await change.record(namespace, version)
    return version
