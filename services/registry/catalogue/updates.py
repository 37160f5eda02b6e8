"""Changes of what is said of adapters, bases and versions: description and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from graft.errors import GraftError, Reason
from graft.names import namespace_of
from sqlalchemy import ColumnElement, Table, delete, update

from services.registry.catalogue import rows
from services.registry.catalogue.change import Change
from services.registry.catalogue.commits import read_version
from services.registry.catalogue.database import Database
from services.registry.catalogue.models import add_labels, read_parent
from services.registry.catalogue.tables import adapters, bases, resource_labels, versions
from services.registry.domain import Action, Adapter, Base, Version
from services.registry.errors import deleted

Said = Adapter | Base | Version


@dataclass(frozen=True, slots=True)
class NewWords:
    """What is to be said of a resource; None for what stays. etag "" for no condition."""

    name: str
    description: str | None = None
    labels: Mapping[str, str] | None = None
    etag: str = ""


class Updates:
    """Changes what is said of resources.

    Args:
        database: runs the transactions.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def update(self, new: NewWords) -> Said:
        """Stores it with a new etag; what says the same already stays as it is.

        Raises:
            GraftError: *_NOT_FOUND, ETAG_MISMATCH, DELETED.
        """
        return await self._database.change(lambda change: _update(change, new))


async def _update(change: Change, new: NewWords) -> Said:
    parent, _, number = new.name.partition("/versions/")
    found: Said
    if number:
        found = await read_version(change.connection, parent, int(number))
    else:
        found = await read_parent(change.connection, parent)
    if new.etag and new.etag != found.life.etag:
        raise GraftError(
            Reason.ETAG_MISMATCH,
            f"{new.name} was changed since it was read: its etag is {found.life.etag}",
            next_step="Get it again and decide anew.",
            resource=new.name,
            etag=found.life.etag,
        )
    if found.life.deleted:
        raise deleted(rows.kind_of(found), new.name, found.life)
    changed = replace(
        found,
        description=found.description if new.description is None else new.description,
        labels=found.labels if new.labels is None else dict(new.labels),
    )
    if changed == found:
        return found
    changed = replace(changed, life=replace(found.life, etag=change.new_etag(new.name)))
    await _store(change, changed)
    change.record(
        namespace_of(new.name),
        changed,
        Action.UPDATED,
        {"before": _words(found, changed), "after": _words(changed, found)},
    )
    return changed


async def _store(change: Change, changed: Said) -> None:
    table, where = _place(changed)
    values = {
        "description": changed.description,
        "labels": rows.dump(dict(changed.labels), dict[str, str]),
        "etag": changed.life.etag,
    }
    await change.connection.execute(update(table).where(where).values(values))
    number = changed.number if isinstance(changed, Version) else 0
    owner = rows.parent_of(changed)
    await change.connection.execute(
        delete(resource_labels).where(
            resource_labels.c.name == owner, resource_labels.c.number == number
        )
    )
    change.supersede(resource_labels, {"name": owner, "number": number})
    add_labels(change, namespace_of(owner), owner, number, changed.labels)


def _place(said: Said) -> tuple[Table, ColumnElement[bool]]:
    if isinstance(said, Version):
        of_parent = versions.c.parent == said.parent
        return versions, of_parent & (versions.c.number == said.number)
    table = adapters if isinstance(said, Adapter) else bases
    return table, table.c.name == said.name


def _words(of: Said, beside: Said) -> dict[str, Any]:
    """What one says otherwise than the other, for the audit log."""
    words: dict[str, Any] = {}
    if of.description != beside.description:
        words["description"] = of.description
    if of.labels != beside.labels:
        words["labels"] = dict(of.labels)
    return words
