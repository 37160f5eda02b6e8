"""The edges of lineages: the stored ones, and those that the versions themselves tell of.

A version of a base is made from that base. Which version of a base an adapter was trained on is told
by their fingerprints: it is right also for what was committed before the base's version.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from graft.names import version_name
from sqlalchemy import ColumnElement, and_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue.lineage_facts import Kind, kind_of
from services.registry.catalogue.tables import lineage_edges, versions

Key = tuple[str, int]
_trained, _made = versions.alias("trained"), versions.alias("made")


@dataclass(frozen=True, slots=True, order=True)
class Edge:
    """result was made from source; see LineageEdge."""

    result: str
    source: str
    relation: str


async def edges_to_sources(
    connection: AsyncConnection, names: Sequence[str], limit: int
) -> list[Edge]:
    """Some of the edges from names to what they were made from; more than limit only where known."""
    found = await _stored(connection, lineage_edges.c.result.in_(names), limit)
    keys = version_keys(names)
    if keys:
        found += await _by_fingerprint(
            connection, tuple_(_trained.c.parent, _trained.c.number).in_(keys), limit
        )
    of_bases = [key for key in keys if "/bases/" in key[0]]
    return found + [Edge(version_name(*key), key[0], "base") for key in of_bases]


async def edges_to_results(
    connection: AsyncConnection, names: Sequence[str], limit: int
) -> list[Edge]:
    """Some of the edges to names from what was made from them."""
    found = await _stored(connection, lineage_edges.c.source.in_(names), limit)
    bases = [name for name in names if kind_of(name) is Kind.BASE]
    if bases:
        found += await _versions_of(connection, bases, limit)
    keys = [key for key in version_keys(names) if "/bases/" in key[0]]
    if keys:
        found += await _by_fingerprint(
            connection, tuple_(_made.c.parent, _made.c.number).in_(keys), limit
        )
    return found


def version_keys(names: Iterable[str]) -> list[Key]:
    """Parent and number of those names that are versions'."""
    keys: list[Key] = []
    for name in names:
        if kind_of(name) is Kind.VERSION:
            parent, _, number = name.partition("/versions/")
            keys.append((parent, int(number)))
    return keys


async def _stored(
    connection: AsyncConnection, where: ColumnElement[bool], limit: int
) -> list[Edge]:
    columns = lineage_edges.c
    query = (
        select(columns.result, columns.source, columns.relation)
        .where(where)
        .order_by(columns.source, columns.result)
        .limit(limit)
    )
    found = await connection.execute(query)
    return [Edge(row.result, row.source, row.relation) for row in found]


async def _versions_of(connection: AsyncConnection, bases: Sequence[str], limit: int) -> list[Edge]:
    query = (
        select(versions.c.parent, versions.c.number)
        .where(versions.c.parent.in_(bases))
        .order_by(versions.c.parent, versions.c.number)
        .limit(limit)
    )
    found = await connection.execute(query)
    return [Edge(version_name(row.parent, row.number), row.parent, "base") for row in found]


async def _by_fingerprint(
    connection: AsyncConnection, where: ColumnElement[bool], limit: int
) -> list[Edge]:
    """Edges from versions of adapters to the versions of their bases."""
    same: Any = and_(
        _made.c.parent == _trained.c.base,
        _made.c.fingerprint == _trained.c.base_fingerprint,
        _made.c.fingerprint != "",
        _trained.c.kind == "adapter",
    )
    query = (
        select(_trained.c.parent, _trained.c.number, _made.c.parent, _made.c.number)
        .select_from(_trained.join(_made, same))
        .where(where)
        .order_by(_trained.c.parent, _trained.c.number, _made.c.number)
        .limit(limit)
    )
    found = await connection.execute(query)
    return [
        Edge(version_name(result, number), version_name(base, of), "base")
        for result, number, base, of in found
    ]
