"""The ends of adapters, bases and versions, and their return: soft delete, undelete, purge.

What is deleted keeps everything, and is hidden. What is purged keeps its row, so that its name or
number is never given to anything else, and lets go of its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

from graft.errors import GraftError, Reason
from graft.names import namespace_of, version_name
from sqlalchemy import ColumnElement, Table, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import rows
from services.registry.catalogue.change import Change
from services.registry.catalogue.commits import read_version
from services.registry.catalogue.database import Database
from services.registry.catalogue.models import read_parent
from services.registry.catalogue.tables import (
    adapters,
    alias_policies,
    aliases,
    bases,
    lease_targets,
    version_files,
    versions,
)
from services.registry.catalogue.usage import use
from services.registry.domain import Action, Adapter, AliasPolicy, Base, Life, Version
from services.registry.errors import deleted

Mortal = Adapter | Base | Version
# Versions of a purged parent that are purged in one change.
_AT_ONCE = 100


class Lives:
    """Ends of what is in a catalogue. A name is an adapter's, a base's or a version's.

    Methods raise GraftError: *_NOT_FOUND.

    Args:
        database: runs the transactions.
        undelete_window: how long at least what is deleted can be undeleted.
    """

    def __init__(self, database: Database, undelete_window: timedelta) -> None:
        self._database, self._window = database, undelete_window

    async def delete(self, name: str, etag: str = "", reason: str = "") -> Mortal:
        """Hides a resource; again, it stays as it is.

        Raises:
            GraftError: IN_USE naming what uses it; PROTECTED; ETAG_MISMATCH; DELETED when it was
                purged, or when the version's parent is deleted.
        """
        return await self._database.change(
            lambda change: _delete(change, name, etag, reason, self._window)
        )

    async def undelete(self, name: str) -> Mortal:
        """Brings a resource back as it was, as long as it is not purged.

        Raises:
            GraftError: DELETED when it was purged, or when what it belongs to is deleted.
        """
        return await self._database.change(lambda change: _undelete(change, name))

    async def purge(self, name: str, reason: str = "") -> Mortal:
        """Ends a deleted resource for good, with its versions.

        Raises:
            GraftError: NOT_DELETED; IN_USE for a base of adapters that are not purged.
        """
        ended = await self._database.change(lambda change: purge(change, name, reason))
        if not isinstance(ended, Version):
            while await self._database.change(lambda change: purge_versions(change, name, reason)):
                pass
        return ended


async def _delete(change: Change, name: str, etag: str, reason: str, window: timedelta) -> Mortal:
    found = await _read(change.connection, name)
    if found.life.purge_time is not None:
        raise _is_deleted(found)
    if etag and etag != found.life.etag:
        raise _changed(name, found.life.etag)
    if found.life.deleted:
        return found
    await _check_unused(change.connection, found)
    life = replace(found.life, delete_time=change.now, expire_time=change.now + window)
    return await _store(change, found, life, Action.DELETED, {"reason": reason})


async def _undelete(change: Change, name: str) -> Mortal:
    found = await _read(change.connection, name)
    if found.life.purge_time is not None:
        raise _is_deleted(found)
    if not found.life.deleted:
        return found
    if not isinstance(found, Base):
        owner = found.base if isinstance(found, Adapter) else found.parent
        await require_live(change.connection, owner)
    life = replace(found.life, delete_time=None, expire_time=None)
    return await _store(change, found, life, Action.UNDELETED, {})


async def purge(change: Change, name: str, reason: str) -> Mortal:
    """Ends one deleted resource; versions of it are purge_versions()'s. See Lives.purge."""
    found = await _read(change.connection, name)
    if found.life.purge_time is not None:
        return found
    if not found.life.deleted:
        raise GraftError(
            Reason.NOT_DELETED,
            f"{name} is not deleted, and only what is deleted can be purged",
            next_step="Delete it first; until it is purged that can be undone.",
            resource=name,
        )
    if isinstance(found, Base):
        await _check_no_adapter(change.connection, name, adapters.c.purge_time_us.is_(None))
    if isinstance(found, Adapter):
        await use(change, namespace_of(name), adapters=-1)
    return await _end(change, found, reason)


async def purge_versions(change: Change, parent: str, reason: str) -> bool:
    """Ends some of the versions of a purged parent; says whether there may be more."""
    query = (
        select(versions)
        .where(versions.c.parent == parent, versions.c.purge_time_us.is_(None))
        .order_by(versions.c.number)
        .limit(_AT_ONCE)
    )
    found = (await change.connection.execute(query)).all()
    for row in found:
        await _end(change, rows.version_of(row), reason)
    return len(found) == _AT_ONCE


async def require_live(connection: AsyncConnection, name: str) -> None:
    """Raises DELETED when an adapter or base is deleted or purged."""
    owner = await read_parent(connection, name)
    if owner.life.deleted:
        raise _is_deleted(owner)


async def _end(change: Change, found: Mortal, reason: str) -> Mortal:
    if isinstance(found, Version):
        await _let_go(change, found)
    life = replace(
        found.life,
        delete_time=found.life.delete_time or change.now,
        expire_time=None,
        purge_time=change.now,
    )
    return await _store(change, found, life, Action.PURGED, {"reason": reason})


async def _let_go(change: Change, version: Version) -> None:
    """Its bytes may go, when those that hold leases on it have let go of it too."""
    name = version_name(version.parent, version.number)
    held = select(lease_targets.c.lease).where(lease_targets.c.target == name)
    digests = sorted({file.digest for file in version.manifest.files})
    for lease in (await change.connection.scalars(held)).all():
        has = select(lease_targets.c.target).where(lease_targets.c.lease == lease)
        known = set(await change.connection.scalars(has))
        fresh = [{"lease": lease, "target": digest} for digest in digests if digest not in known]
        if fresh:
            await change.connection.execute(insert(lease_targets), fresh)
    await change.connection.execute(
        delete(version_files).where(
            version_files.c.parent == version.parent, version_files.c.number == version.number
        )
    )
    size_bytes = version.manifest.size_bytes
    await use(change, namespace_of(version.parent), size_bytes=-size_bytes, versions=-1)


async def _read(connection: AsyncConnection, name: str) -> Mortal:
    parent, _, number = name.partition("/versions/")
    if number:
        return await read_version(connection, parent, int(number))
    return await read_parent(connection, name)


async def _store(
    change: Change, found: Mortal, life: Life, action: Action, detail: Mapping[str, Any]
) -> Mortal:
    table, where = _place(found)
    await change.connection.execute(update(table).where(where).values(rows.life_row(life)))
    changed = replace(found, life=life)
    change.record(namespace_of(rows.name_of(changed)), changed, action, detail)
    return changed


def _place(found: Mortal) -> tuple[Table, ColumnElement[bool]]:
    if isinstance(found, Version):
        of_parent = versions.c.parent == found.parent
        return versions, of_parent & (versions.c.number == found.number)
    table = adapters if isinstance(found, Adapter) else bases
    return table, table.c.name == found.name


async def _check_unused(connection: AsyncConnection, found: Mortal) -> None:
    if isinstance(found, Version):
        await require_live(connection, found.parent)
        await _check_not_named(connection, found)
        return
    if isinstance(found, Base):
        await _check_no_adapter(connection, found.name, adapters.c.delete_time_us.is_(None))
    await _check_not_protected(connection, found.name)


async def _check_not_named(connection: AsyncConnection, version: Version) -> None:
    name = version_name(version.parent, version.number)
    query = select(aliases).where(aliases.c.parent == version.parent).order_by(aliases.c.name)
    for row in await connection.execute(query):
        alias = rows.alias_of(row)
        if version.number in (alias.version, *(one.version for one in alias.canaries)):
            raise _in_use(
                f"{name} is named by {alias.name}",
                "Point the alias at another version with SetAlias (`graft adapters promote`) first.",
                resource=name,
                alias=alias.name,
            )


async def _check_no_adapter(
    connection: AsyncConnection, base: str, which: ColumnElement[bool]
) -> None:
    query = select(adapters.c.name).where(adapters.c.base == base, which).limit(1)
    adapter = await connection.scalar(query)
    if adapter is not None:
        raise _in_use(
            f"{base} is the base of {adapter}",
            "End the adapters of a base in the same way (delete, or purge) first.",
            resource=base,
            adapter=adapter,
        )


async def _check_not_protected(connection: AsyncConnection, parent: str) -> None:
    query = (
        select(alias_policies.c.policy)
        .join(aliases, aliases.c.name == alias_policies.c.name)
        .where(alias_policies.c.parent == parent)
        .order_by(alias_policies.c.name)
    )
    for text in await connection.scalars(query):
        policy = rows.load(text, AliasPolicy)
        if policy.protected:
            raise GraftError(
                Reason.PROTECTED,
                f"{parent} cannot be deleted: {policy.name} is protected",
                next_step="Take the protection away with SetAliasPolicy first.",
                resource=parent,
                alias=policy.name,
            )


def _is_deleted(found: Mortal) -> GraftError:
    return deleted(rows.kind_of(found), rows.name_of(found), found.life)


def _in_use(message: str, next_step: str, **metadata: object) -> GraftError:
    return GraftError(Reason.IN_USE, message, next_step=next_step, **metadata)


def _changed(name: str, etag: str) -> GraftError:
    return GraftError(
        Reason.ETAG_MISMATCH,
        f"{name} was changed since it was read: its etag is {etag}",
        next_step="Get it again and decide anew.",
        resource=name,
        etag=etag,
    )
