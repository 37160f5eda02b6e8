"""Pages of adapters, bases and versions: filtered, sorted, and by key, so that each costs the same.

A page begins after the last item's place in its order, which the indexes of tables.py lead to. Who
has no such metric comes last, whichever way is sorted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, and_, cast, not_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import rows, tables
from services.registry.catalogue.database import Database
from services.registry.catalogue.models import read_parent
from services.registry.catalogue.wheres import Found, state_is, where
from services.registry.domain import Adapter, Base, Page, Version
from services.registry.find.listings import Listing
from services.registry.find.tree import State, names_field

T = TypeVar("T")
Columns = tuple[ColumnElement[Any], ...]
# A place in an order: the values of its columns, or of the key alone where there is no metric.
Place = list[Any]


class Finder:
    """Lists what a catalogue has.

    Methods raise GraftError: *_NOT_FOUND for a parent that is not there.

    Args:
        database: runs the queries.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def adapters(self, listing: Listing) -> Page[Adapter]:
        """Adapters of a namespace."""
        found = Found(
            tables.adapters,
            f"{listing.parent}/adapters/",
            f"{listing.parent}/bases/",
            listing.namespace,
        )
        return await self._models(listing, found, rows.adapter_of)

    async def bases(self, listing: Listing) -> Page[Base]:
        """Bases of a namespace, without modules and config_json."""
        before = f"{listing.parent}/bases/"
        found = Found(tables.bases, before, before, listing.namespace)
        return await self._models(listing, found, lambda row: rows.base_of(row, whole=False))

    async def versions(self, listing: Listing) -> Page[Version]:
        """Versions of an adapter or a base, or of all of a namespace's."""
        whole, namespace = listing.parent.endswith("/-"), listing.namespace
        if not whole:
            await self._database.read(lambda connection: read_parent(connection, listing.parent))
        group = listing.parent.split("/")[2]
        found = Found(
            tables.versions,
            f"namespaces/{namespace}/{group}/",
            f"namespaces/{namespace}/bases/",
            namespace,
        )
        versions = tables.versions.c
        if whole:
            kind = group.removesuffix("s")
            within = and_(versions.namespace == namespace, versions.kind == kind)
            key: Columns = (versions.parent, versions.number)
        else:
            within, key = versions.parent == listing.parent, (versions.number,)
        query = select(tables.versions).where(_wanted(listing, found, whole))
        if listing.order.field == "metrics":
            found_rows = await self._by_metric(listing, query, within, key)
        else:
            query = query.where(within)
            found_rows = await self._rows(_sorted(listing, query, _columns(listing, key)))
        return _page(listing, found_rows, rows.version_of)

    async def _models(
        self, listing: Listing, found: Found, make: Callable[[rows.AnyRow], T]
    ) -> Page[T]:
        table = found.table
        wanted = [one for one in table.c if one.name not in ("config_json", "modules")]
        query = select(*wanted).where(
            table.c.namespace == listing.namespace, _wanted(listing, found, False)
        )
        key = _columns(listing, (table.c.name,))
        return _page(listing, await self._rows(_sorted(listing, query, key)), make)

    async def _by_metric(
        self, listing: Listing, query: Select[Any], within: ColumnElement[bool], key: Columns
    ) -> Sequence[rows.AnyRow]:
        after = None if listing.after is None else json.loads(listing.after)
        found: list[rows.AnyRow] = []
        if after is None or len(after) > len(key):
            found += await self._rows(_with_metric(listing, query, len(key) > 1, after))
            after = None
        if len(found) <= listing.limit:
            metrics, versions = tables.version_metrics.c, tables.versions.c
            has = and_(
                metrics.parent == versions.parent,
                metrics.number == versions.number,
                metrics.metric == listing.order.key,
            )
            without = query.where(within, not_(select(metrics.parent).where(has).exists()))
            found += await self._rows(_sorted(listing, without, key, after))
        return found[: listing.limit + 1]

    async def _rows(self, query: Select[Any]) -> Sequence[rows.AnyRow]:
        async def read(connection: AsyncConnection) -> Sequence[rows.AnyRow]:
            found: Sequence[rows.AnyRow] = (await connection.execute(query)).all()
            return found

        return await self._database.read(read)


def _with_metric(
    listing: Listing, query: Select[Any], whole: bool, after: Place | None
) -> Select[Any]:
    """Versions that have the metric, by the index of the metrics.

    What would let a planner begin with the versions, and sort all of them, is kept from it.
    """
    metrics, versions = tables.version_metrics.c, tables.versions.c
    same = and_(metrics.parent == versions.parent, metrics.number == versions.number)
    query = query.join(tables.version_metrics, same).where(metrics.metric == listing.order.key)
    if not whole:
        query = query.where(metrics.parent == listing.parent)
        return _sorted(listing, query, (metrics.value, metrics.number), after)
    other = "adapter" if listing.parent.endswith("/bases/-") else "base"
    query = query.where(metrics.namespace == listing.namespace, versions.kind != other)
    return _sorted(listing, query, (metrics.value, metrics.parent, metrics.number), after)


def _columns(listing: Listing, key: Columns) -> Columns:
    """What is sorted by: the field, and the key for those that are alike."""
    table, field = key[0].table, listing.order.field
    if field in ("name", "number"):
        return key
    return (table.c["create_time_us" if field == "create_time" else field], *key)


def _wanted(listing: Listing, found: Found, whole: bool) -> ColumnElement[bool]:
    wanted = where(listing.where, found)
    if listing.show_deleted or names_field(listing.where, "state"):
        return wanted
    active = state_is(found.table, State.ACTIVE)
    if not whole:
        return and_(wanted, active)
    # What a deleted adapter or base has is hidden with it.
    owner = tables.bases if found.names.endswith("/bases/") else tables.adapters
    gone = select(owner.c.name).where(
        owner.c.namespace == found.namespace, owner.c.delete_time_us.is_not(None)
    )
    return and_(wanted, active, found.owner.not_in(gone))


def _sorted(
    listing: Listing, query: Select[Any], columns: Columns, after: Place | None = None
) -> Select[Any]:
    """A query from a place on, one row longer than the page; each row ends with its own place."""
    if after is None and listing.after is not None and listing.order.field != "metrics":
        after = json.loads(listing.after)
    descending = listing.order.descending
    ways = [one.desc() if descending else one.asc() for one in columns]
    places = [one.label(f"place_{index}") for index, one in enumerate(columns)]
    query = query.add_columns(*places).order_by(*ways).limit(listing.limit + 1)
    if after is None:
        return query
    here = tuple_(*columns)
    there = tuple_(*(cast(value, one.type) for value, one in zip(after, columns, strict=True)))
    return query.where(here < there if descending else here > there)


def _page(
    listing: Listing, found: Sequence[rows.AnyRow], make: Callable[[rows.AnyRow], T]
) -> Page[T]:
    items = [make(row) for row in found[: listing.limit]]
    if len(found) <= listing.limit:
        return Page(items, None)
    last = found[listing.limit - 1]._mapping
    place: Place = [value for name, value in last.items() if str(name).startswith("place_")]
    return Page(items, json.dumps(place))
