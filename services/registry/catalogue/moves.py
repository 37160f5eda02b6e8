"""Aliases in SQL: compare-and-set, and the history of every move."""

from __future__ import annotations

from graft.errors import GraftError, Reason
from graft.names import namespace_of, version_name
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import rows
from services.registry.catalogue.base import AliasMove
from services.registry.catalogue.change import Change
from services.registry.catalogue.commits import read_version
from services.registry.catalogue.lives import require_live
from services.registry.catalogue.tables import alias_moves, aliases
from services.registry.domain import Action, Alias
from services.registry.errors import deleted, not_found


async def find_alias(connection: AsyncConnection, name: str) -> Alias | None:
    """The alias of that name, if there is one."""
    row = (await connection.execute(select(aliases).where(aliases.c.name == name))).one_or_none()
    return None if row is None else rows.alias_of(row)


async def move_alias(change: Change, move: AliasMove) -> Alias:
    """See Catalogue.move_alias."""
    parent = move.name.rsplit("/", 2)[0]
    now = await find_alias(change.connection, move.name)
    await require_live(change.connection, parent)
    _check_conditions(move, parent, now)
    target = _target(move, now)
    version = await read_version(change.connection, parent, target)
    if version.life.deleted:
        raise deleted("version", version_name(parent, target), version.life)
    if now is not None and now.version == target:
        return now
    revision = change.next_revision
    moved = Alias(
        name=move.name,
        parent=parent,
        version=target,
        version_digest=version.digest,
        previous_version=0 if now is None else now.version,
        etag=change.new_etag(move.name),
        actor=move.actor,
        reason=move.reason,
        update_time=change.now,
        revision=revision,
    )
    await _store(change, namespace_of(parent), moved, is_new=now is None)
    return moved


async def _store(change: Change, namespace: str, moved: Alias, is_new: bool) -> None:
    row = rows.alias_row(moved, namespace)
    if is_new:
        await change.connection.execute(insert(aliases).values(row))
    else:
        await change.connection.execute(
            update(aliases).where(aliases.c.name == moved.name).values(row)
        )
    change.add(alias_moves, [{**row, "deleted": False}])
    action = Action.CREATED if is_new else Action.UPDATED
    change.record(namespace, moved, action, _audited(moved))


def _audited(moved: Alias) -> dict[str, object]:
    before = moved.previous_version
    return {
        "version": version_name(moved.parent, moved.version),
        "previous_version": version_name(moved.parent, before) if before else "",
        "reason": moved.reason,
    }


def _target(move: AliasMove, now: Alias | None) -> int:
    if move.version is not None:
        return move.version
    if now is None:
        raise not_found("alias", move.name)
    if not now.previous_version:
        raise GraftError(
            Reason.NO_PREVIOUS_VERSION,
            f"{move.name} has named no other version than {version_name(now.parent, now.version)}",
            next_step="Point it at a version with SetAlias (`graft adapters promote`).",
            resource=move.name,
        )
    return now.previous_version


def _check_conditions(move: AliasMove, parent: str, now: Alias | None) -> None:
    current = now.version if now is not None else 0
    if move.expected_version is not None and move.expected_version != current:
        raise _moved(move.name, parent, move.expected_version, current)
    if move.etag is not None and (now is None or now.etag != move.etag):
        raise GraftError(
            Reason.ALIAS_MOVED,
            f"{move.name} was moved since etag {move.etag} was read: it names "
            f"{_named(parent, current)}",
            next_step="Read it again with GetAlias and decide anew.",
            resource=move.name,
            version=version_name(parent, current) if current else "",
            etag=now.etag if now is not None else "",
        )


def _moved(name: str, parent: str, expected: int, current: int) -> GraftError:
    return GraftError(
        Reason.ALIAS_MOVED,
        f"{name} names {_named(parent, current)}, and not {_named(parent, expected)} as expected",
        next_step="Somebody moved it meanwhile: read it with GetAlias and decide anew.",
        resource=name,
        version=version_name(parent, current) if current else "",
        expected_version=version_name(parent, expected) if expected else "",
    )


def _named(parent: str, number: int) -> str:
    return version_name(parent, number) if number else "no version"
