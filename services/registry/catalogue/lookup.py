"""What an alias names now, for many who ask at once: a small query, and the version from memory.

A version's content never changes, and what is said of it seldom: it is read and put together once,
and again when the query says that something of it is new.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import rows
from services.registry.catalogue.batching import Batched
from services.registry.catalogue.commits import read_version
from services.registry.catalogue.database import Database
from services.registry.domain import Version
from services.registry.errors import deleted, not_found

T = TypeVar("T")
_COLUMNS = (
    "SELECT a.name, a.parent, a.version, v.etag, v.delete_time_us, v.purge_time_us, "
    "length(v.signatures) AS signatures_size, "
    "coalesce(o.delete_time_us, b.delete_time_us) AS owner_delete_time_us, "
    "coalesce(o.purge_time_us, b.purge_time_us) AS owner_purge_time_us "
    "FROM aliases a JOIN versions v ON v.parent = a.parent AND v.number = a.version "
    "LEFT JOIN adapters o ON o.name = a.parent LEFT JOIN bases b ON b.name = a.parent "
)
# One text for any number of names, so that its plan is made once.
_QUERIES: Mapping[str, str] = {
    "sqlite": _COLUMNS + "WHERE a.name IN (SELECT value FROM json_each(?))",
    "postgresql": _COLUMNS + "WHERE a.name = ANY($1)",
}


@dataclass(frozen=True, slots=True)
class _Named:
    """What an alias names; state changes with everything that can change of a version."""

    parent: str
    number: int
    state: tuple[object, ...]
    owner_delete_time_us: int | None
    owner_purge_time_us: int | None


class VersionLookup(Generic[T]):
    """Versions by alias.

    Args:
        database: runs the queries.
        make: what is kept and answered of a version.
        kept: how many are kept in memory.
    """

    def __init__(self, database: Database, make: Callable[[Version], T], kept: int = 2048) -> None:
        self._database, self._make, self._most = database, make, kept
        self._batched = Batched(self._ask)
        self._kept: OrderedDict[tuple[str, int], tuple[tuple[object, ...], T]] = OrderedDict()

    async def by_alias(self, alias: str) -> T:
        """What is made of the version that an alias names at the time of the call.

        Raises:
            GraftError: ALIAS_NOT_FOUND; DELETED when the alias' adapter or base is.
        """
        named = await self._batched.get(alias)
        if named is None:
            raise not_found("alias", alias)
        if named.owner_delete_time_us is not None:
            life = rows.ended(named.owner_delete_time_us, named.owner_purge_time_us)
            raise deleted("base" if "/bases/" in named.parent else "adapter", named.parent, life)
        key = (named.parent, named.number)
        kept = self._kept.get(key)
        if kept is not None and kept[0] == named.state:
            self._kept.move_to_end(key)
            return kept[1]
        version = await self._database.read(lambda connection: read_version(connection, *key))
        made = self._make(version)
        self._kept[key] = (named.state, made)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return made

    async def _ask(self, names: Sequence[str]) -> Mapping[str, _Named]:
        dialect = self._database.engine.dialect.name
        wanted: tuple[Any, ...] = (json.dumps(names) if dialect == "sqlite" else list(names),)

        async def read(connection: AsyncConnection) -> Mapping[str, _Named]:
            found = await connection.exec_driver_sql(_QUERIES[dialect], wanted)
            return {row.name: _named_by(row) for row in found}

        return await self._database.read(read)


def _named_by(row: rows.AnyRow) -> _Named:
    state = (row.etag, row.delete_time_us, row.purge_time_us, row.signatures_size)
    return _Named(row.parent, row.version, state, row.owner_delete_time_us, row.owner_purge_time_us)
