"""Adapters and bases in SQL."""

from __future__ import annotations

from graft.errors import GraftError, Reason
from graft.names import parse_name
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import rows
from services.registry.catalogue.base import NewAdapter, NewBase, RequestKey
from services.registry.catalogue.database import Change
from services.registry.catalogue.requests import find_answer, keep_answer
from services.registry.catalogue.tables import adapters, bases
from services.registry.domain import Adapter, Base
from services.registry.errors import not_found


async def read_adapter(connection: AsyncConnection, name: str) -> Adapter:
    """Raises ADAPTER_NOT_FOUND."""
    row = (await connection.execute(select(adapters).where(adapters.c.name == name))).one_or_none()
    if row is None:
        raise not_found("adapter", name)
    return rows.adapter_of(row)


async def read_base(connection: AsyncConnection, name: str) -> Base:
    """Raises BASE_NOT_FOUND."""
    row = (await connection.execute(select(bases).where(bases.c.name == name))).one_or_none()
    if row is None:
        raise not_found("base", name)
    return rows.base_of(row)


async def create_adapter(change: Change, new: NewAdapter, key: RequestKey | None) -> Adapter:
    """See Catalogue.create_adapter."""
    namespace = parse_name(new.name, "namespaces/{namespace}/adapters/{adapter}")["namespace"]
    connection = change.connection
    answered = await find_answer(connection, namespace, key)
    if answered is not None:
        assert isinstance(answered, Adapter), "the hash holds the kind of request"
        return answered
    found = select(adapters.c.name).where(adapters.c.name == new.name)
    if await connection.scalar(found) is not None:
        raise _exists(new.name, "Use it as it is, or choose another name.")
    if await connection.scalar(select(bases.c.name).where(bases.c.name == new.base)) is None:
        raise not_found("base", new.base)
    adapter = Adapter(new.name, new.base, new.description, new.labels, 0, change.now)
    await connection.execute(insert(adapters).values(rows.adapter_row(adapter, namespace)))
    await change.record(namespace, adapter)
    await keep_answer(change, namespace, key, adapter)
    return adapter


async def create_base(change: Change, new: NewBase) -> Base:
    """See Catalogue.create_base."""
    namespace = parse_name(new.name, "namespaces/{namespace}/bases/{base}")["namespace"]
    row = (
        await change.connection.execute(select(bases).where(bases.c.name == new.name))
    ).one_or_none()
    if row is not None:
        stored = rows.base_of(row)
        if stored.fingerprint.digest == new.fingerprint.digest:
            return stored
        raise _exists(
            new.name,
            "It is another model: record this one under a name of its own.",
            fingerprint=stored.fingerprint.digest,
        )
    base = Base(new.name, new.source, new.fingerprint, new.config_json, new.modules, change.now)
    await change.connection.execute(insert(bases).values(rows.base_row(base, namespace)))
    await change.record(namespace, base)
    return base


def _exists(name: str, next_step: str, **metadata: object) -> GraftError:
    detail = f" with the fingerprint {metadata['fingerprint']}" if metadata else ""
    return GraftError(
        Reason.ALREADY_EXISTS,
        f"{name} exists already{detail}",
        next_step=next_step,
        resource=name,
        **metadata,
    )
