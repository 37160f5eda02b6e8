"""Adapters and bases in SQL."""

from __future__ import annotations

from collections.abc import Mapping

from graft.errors import GraftError, Reason
from graft.names import namespace_of
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import rows
from services.registry.catalogue.base import NewAdapter, NewBase, RequestKey
from services.registry.catalogue.change import Change
from services.registry.catalogue.requests import find_answer, keep_answer
from services.registry.catalogue.tables import (
    adapters,
    base_contents,
    bases,
    resource_labels,
    versions,
)
from services.registry.catalogue.usage import use
from services.registry.domain import Adapter, Base, BaseContent, Fingerprint, Life, Module
from services.registry.errors import deleted, not_found


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


async def read_parent(connection: AsyncConnection, name: str) -> Adapter | Base:
    """The adapter or base of that name. Raises ADAPTER_NOT_FOUND, BASE_NOT_FOUND."""
    if "/bases/" in name:
        return await read_base(connection, name)
    return await read_adapter(connection, name)


async def read_content(
    connection: AsyncConnection, base: str, fingerprint: str
) -> BaseContent | None:
    """See Catalogue.base_content."""
    recorded = await read_base(connection, base)
    if recorded.fingerprint.digest == fingerprint:
        return BaseContent(
            recorded.name, recorded.fingerprint, recorded.config_json, recorded.modules
        )
    of_base = (versions.c.parent == base) & (versions.c.fingerprint == fingerprint)
    row = (
        await connection.execute(
            select(base_contents)
            .join(versions, versions.c.fingerprint == base_contents.c.fingerprint_digest)
            .where(of_base, versions.c.delete_time_us.is_(None))
            .limit(1)
        )
    ).one_or_none()
    if row is None:
        return None
    return BaseContent(
        name=base,
        fingerprint=rows.load(row.fingerprint, Fingerprint),
        config_json=row.config_json,
        modules=rows.load(row.modules, list[Module]),
    )


async def create_adapter(change: Change, new: NewAdapter, key: RequestKey | None) -> Adapter:
    """See Catalogue.create_adapter."""
    namespace = namespace_of(new.name)
    connection = change.connection
    answered = await find_answer(connection, namespace, key)
    if answered is not None:
        assert isinstance(answered, Adapter), "the hash holds the kind of request"
        return answered
    row = (
        await connection.execute(select(adapters).where(adapters.c.name == new.name))
    ).one_or_none()
    if row is not None:
        stored = rows.adapter_of(row)
        raise _exists(new.name, _instead("adapters", stored) or "Use it, or choose another name.")
    base = await read_base(connection, new.base)
    if base.life.deleted:
        raise deleted("base", new.base, base.life)
    await use(change, namespace, adapters=1)
    adapter = Adapter(
        new.name, new.base, new.description, new.labels, 0, change.now, new_life(change, new.name)
    )
    await connection.execute(insert(adapters).values(rows.adapter_row(adapter, namespace)))
    add_labels(change, namespace, new.name, 0, new.labels)
    change.record(namespace, adapter)
    await keep_answer(change, namespace, key, adapter)
    return adapter


async def create_base(change: Change, new: NewBase) -> Base:
    """See Catalogue.create_base."""
    namespace = namespace_of(new.name)
    row = (
        await change.connection.execute(select(bases).where(bases.c.name == new.name))
    ).one_or_none()
    if row is not None:
        stored = rows.base_of(row)
        if stored.fingerprint.digest == new.fingerprint.digest and not stored.life.deleted:
            return stored
        raise _exists(
            new.name,
            _instead("bases", stored)
            or "It is another model: record this one under a name of its own.",
            fingerprint=stored.fingerprint.digest,
        )
    await use(change, namespace)
    base = Base(
        name=new.name,
        source=new.source,
        fingerprint=new.fingerprint,
        config_json=new.config_json,
        modules=new.modules,
        create_time=change.now,
        description=new.description,
        labels=new.labels,
        life=new_life(change, new.name),
    )
    await change.connection.execute(insert(bases).values(rows.base_row(base, namespace)))
    add_labels(change, namespace, new.name, 0, new.labels)
    change.record(namespace, base)
    return base


def new_life(change: Change, name: str) -> Life:
    """The life of what a change creates."""
    return Life(etag=change.new_etag(name), actor=change.caller.actor)


def add_labels(
    change: Change, namespace: str, name: str, number: int, labels: Mapping[str, str]
) -> None:
    """Notes the rows by which labels are found."""
    change.add(
        resource_labels,
        [
            {"name": name, "number": number, "label": key, "namespace": namespace, "value": value}
            for key, value in labels.items()
        ],
    )


def _instead(group: str, stored: Adapter | Base) -> str:
    """What to do about a name that was given to something deleted; empty where it was not."""
    if stored.life.purge_time is not None:
        return "It was purged, and its name is never given to anything else: choose another."
    if stored.life.deleted:
        return (
            f"It was deleted: bring it back with `graft {group} undelete`, or choose another name."
        )
    return ""


def _exists(name: str, next_step: str, **metadata: object) -> GraftError:
    detail = f" with the fingerprint {metadata['fingerprint']}" if metadata else ""
    return GraftError(
        Reason.ALREADY_EXISTS,
        f"{name} exists already{detail}",
        next_step=next_step,
        resource=name,
        **metadata,
    )
