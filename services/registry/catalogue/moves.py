"""Aliases in SQL: compare-and-set, and the history of every move."""

from __future__ import annotations

import hashlib

from graft.errors import GraftError, Reason
from graft.names import parse_name, version_name
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import rows
from services.registry.catalogue.base import AliasMove
from services.registry.catalogue.commits import read_version
from services.registry.catalogue.database import Change
from services.registry.catalogue.models import read_adapter
from services.registry.catalogue.tables import alias_moves, aliases
from services.registry.domain import Alias
from services.registry.errors import not_found


async def find_alias(connection: AsyncConnection, name: str) -> Alias | None:
    """The alias of that name, if there is one."""
    row = (await connection.execute(select(aliases).where(aliases.c.name == name))).one_or_none()
    return None if row is None else rows.alias_of(row)


async def move_alias(change: Change, move: AliasMove) -> Alias:
    """See Catalogue.move_alias."""
    names = parse_name(move.name, "namespaces/{namespace}/adapters/{adapter}/aliases/{alias}")
    adapter = move.name.rsplit("/", 2)[0]
    now = await find_alias(change.connection, move.name)
    if now is None:
        await read_adapter(change.connection, adapter)
    _check_conditions(move, adapter, now)
    target = _target(move, now)
    version = await read_version(change.connection, adapter, target)
    if now is not None and now.version == target:
        return now
    revision = change.next_revision
    moved = Alias(
        name=move.name,
        adapter=adapter,
        version=target,
        version_digest=version.digest,
        previous_version=0 if now is None else now.version,
        etag=hashlib.sha256(f"{move.name} {revision}".encode()).hexdigest()[:16],
        actor=move.actor,
        reason=move.reason,
        update_time=change.now,
        revision=revision,
    )
    await _store(change, names["namespace"], moved, is_new=now is None)
    return moved


async def _store(change: Change, namespace: str, moved: Alias, is_new: bool) -> None:
    row = rows.alias_row(moved, namespace)
    if is_new:
        await change.connection.execute(insert(aliases).values(row))
    else:
        await change.connection.execute(
            update(aliases).where(aliases.c.name == moved.name).values(row)
        )
    await change.connection.execute(insert(alias_moves).values(row))
    await change.record(namespace, moved)


def _target(move: AliasMove, now: Alias | None) -> int:
    if move.version is not None:
        return move.version
    if now is None:
        raise not_found("alias", move.name)
    if not now.previous_version:
        raise GraftError(
            Reason.NO_PREVIOUS_VERSION,
            f"{move.name} has named no other version than {version_name(now.adapter, now.version)}",
            next_step="Point it at a version with SetAlias (`graft adapters promote`).",
            resource=move.name,
        )
    return now.previous_version


def _check_conditions(move: AliasMove, adapter: str, now: Alias | None) -> None:
    current = now.version if now is not None else 0
    if move.expected_version is not None and move.expected_version != current:
        raise _moved(move.name, adapter, move.expected_version, current)
    if move.etag is not None and (now is None or now.etag != move.etag):
        raise GraftError(
            Reason.ALIAS_MOVED,
            f"{move.name} was moved since etag {move.etag} was read: it names "
            f"{_named(adapter, current)}",
            next_step="Read it again with GetAlias and decide anew.",
            resource=move.name,
            version=version_name(adapter, current) if current else "",
            etag=now.etag if now is not None else "",
        )


def _moved(name: str, adapter: str, expected: int, current: int) -> GraftError:
    return GraftError(
        Reason.ALIAS_MOVED,
        f"{name} names {_named(adapter, current)}, and not {_named(adapter, expected)} as expected",
        next_step="Somebody moved it meanwhile: read it with GetAlias and decide anew.",
        resource=name,
        version=version_name(adapter, current) if current else "",
        expected_version=version_name(adapter, expected) if expected else "",
    )


def _named(adapter: str, number: int) -> str:
    return version_name(adapter, number) if number else "no version"
