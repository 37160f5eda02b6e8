"""What was made from what: a graph around one thing, read from the versions and their edges.

Each answer is one state of the catalogue. Which edges there are is edges.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from graft.names import version_name
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue.commits import read_version
from services.registry.catalogue.database import Database
from services.registry.catalogue.edges import Edge, edges_to_results, edges_to_sources
from services.registry.catalogue.lineage_facts import Kind, NodeFacts, kind_of, read_facts
from services.registry.catalogue.models import read_parent
from services.registry.catalogue.tables import versions

MAX_NODES = 1000
# Of one query, and of a whole answer: a version may name many things that were all met before.
MAX_EDGES = 10_000
_AT_ONCE = 200


class Direction(Enum):
    """Which way to go from where one begins."""

    BOTH = "both"
    SOURCES = "sources"
    RESULTS = "results"


@dataclass(frozen=True, slots=True)
class Lineage:
    """A graph; the first node is what was asked for."""

    nodes: Sequence[NodeFacts]
    edges: Sequence[Edge]
    truncated: bool


@dataclass(slots=True)
class _Walk:
    """What was found so far. Names keep the order in which they were met."""

    names: dict[str, None]
    edges: set[Edge] = field(default_factory=set)
    truncated: bool = False
    # No room for more; truncated says also that there was more in the other direction.
    full: bool = False

    def take(self, edges: Iterable[Edge], name: Callable[[Edge], str]) -> list[str]:
        """Adds edges whose far end has room; answers what was not met before."""
        fresh: list[str] = []
        for edge in edges:
            far = name(edge)
            if len(self.edges) >= MAX_EDGES and edge not in self.edges:
                self.end()
                break
            if far not in self.names:
                if len(self.names) >= MAX_NODES:
                    self.end()
                    continue
                self.names[far] = None
                fresh.append(far)
            self.edges.add(edge)
        return fresh

    def end(self) -> None:
        """Notes that there is more, for which there is no room."""
        self.full = self.truncated = True


Step = Callable[[AsyncConnection, Sequence[str], int], Coroutine[Any, Any, list[Edge]]]


class LineageGraph:
    """The lineages of a catalogue.

    Args:
        database: runs the queries.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def around(self, name: str, direction: Direction, depth: int) -> Lineage:
        """What is at most so many steps away from a name, up to 1000 of it.

        Raises:
            GraftError: VERSION_NOT_FOUND, ADAPTER_NOT_FOUND, BASE_NOT_FOUND. Jobs, data and places
                outside are known by what was made from them only.
        """

        async def read(connection: AsyncConnection) -> Lineage:
            return await _read(connection, name, direction, depth)

        return await self._database.snapshot(read)


async def _read(
    connection: AsyncConnection, name: str, direction: Direction, depth: int
) -> Lineage:
    await _check_there(connection, name)
    walk, begin = _Walk({name: None}), [name]
    if kind_of(name) is Kind.ADAPTER:
        parts = await _versions_of(connection, name)
        begin += walk.take(parts[:MAX_NODES], lambda edge: edge.source)
        walk.truncated |= len(parts) > MAX_NODES
    if direction is not Direction.RESULTS:
        await _follow(connection, walk, begin, depth, edges_to_sources, lambda edge: edge.source)
    if direction is not Direction.SOURCES:
        await _follow(connection, walk, begin, depth, edges_to_results, lambda edge: edge.result)
    edges = [one for one in walk.edges if one.result in walk.names and one.source in walk.names]
    nodes = await read_facts(connection, list(walk.names))
    return Lineage(nodes, sorted(edges), walk.truncated)


async def _check_there(connection: AsyncConnection, name: str) -> None:
    match kind_of(name):
        case Kind.VERSION:
            parent, _, number = name.partition("/versions/")
            await read_version(connection, parent, int(number))
        case Kind.ADAPTER | Kind.BASE:
            await read_parent(connection, name)


async def _follow(
    connection: AsyncConnection,
    walk: _Walk,
    begin: Sequence[str],
    depth: int,
    step: Step,
    far: Callable[[Edge], str],
) -> None:
    """Goes on from what is new, step by step: what was met is not gone on from again."""
    frontier = list(begin)
    met = set(begin)
    for _ in range(depth):
        found: list[Edge] = []
        for index in range(0, len(frontier), _AT_ONCE):
            some = frontier[index : index + _AT_ONCE]
            # One more than there can be room for, to know that there is more.
            found += await step(connection, some, MAX_EDGES + 1)
        walk.take(found, far)
        ends = dict.fromkeys(far(edge) for edge in found)
        frontier = [one for one in ends if one in walk.names and one not in met]
        met.update(frontier)
        if not frontier or walk.full:
            return
    for index in range(0, len(frontier), _AT_ONCE):
        if await step(connection, frontier[index : index + _AT_ONCE], 1):
            walk.truncated = True
            return


async def _versions_of(connection: AsyncConnection, adapter: str) -> list[Edge]:
    query = (
        select(versions.c.number)
        .where(versions.c.parent == adapter)
        .order_by(versions.c.number.desc())
        .limit(MAX_NODES + 1)
    )
    numbers = (await connection.scalars(query)).all()
    return [Edge(adapter, version_name(adapter, number), "version") for number in numbers]
