"""Lineage: what something was made from and what was made from it, as a graph; drawn as DOT or Mermaid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from graft.connection import Connection
from graft.digests import is_digest
from graft.errors import NotFoundError
from graft.names import full_name, namespace_name
from graft.registry.v1 import registry_service_pb2 as pb
from graft.results import short_id

_PEER = "the registry"


class Direction(StrEnum):
    """Which way to follow: to what it was made from, to what was made from it, or both."""

    SOURCES = "sources"
    RESULTS = "results"
    BOTH = "both"


_WIRE: Mapping[Direction, pb.LineageDirection.ValueType] = {
    Direction.SOURCES: pb.LINEAGE_DIRECTION_SOURCES,
    Direction.RESULTS: pb.LINEAGE_DIRECTION_RESULTS,
    Direction.BOTH: pb.LINEAGE_DIRECTION_UNSPECIFIED,
}


@dataclass(frozen=True, slots=True)
class Node:
    """Something in a lineage. kind: "version", "adapter", "base", "job", "data" or "source"."""

    name: str
    kind: str
    facts: Mapping[str, str]
    deleted: bool

    @property
    def title(self) -> str:
        """Its name as people write it: "bot:7"."""
        if self.kind == "version":
            parent, _, number = self.name.rpartition("/versions/")
            return f"{short_id(parent)}:{number}"
        if self.kind == "source":
            return self.name
        if self.kind == "data":
            return self.name.partition("/data/")[2].removeprefix("sha256:")[:12]
        return short_id(self.name)


@dataclass(frozen=True, slots=True)
class Edge:
    """result was made from source. relation: "job", "data", "base", "parent", "source"; "version"
    from an adapter to each of its versions."""

    result: str
    source: str
    relation: str


@dataclass(frozen=True, slots=True)
class Graph:
    """A lineage; the first node is what was asked for, truncated says that there is more."""

    nodes: Sequence[Node]
    edges: Sequence[Edge]
    truncated: bool


async def read_lineage(
    connection: Connection, namespace: str, what: str, direction: Direction, depth: int
) -> Graph:
    """See Client.lineage."""
    names = await _candidates(connection, namespace, what)
    for name in names[:-1]:
        try:
            return await _read(connection, name, direction, depth)
        except NotFoundError:
            continue
    return await _read(connection, names[-1], direction, depth)


async def _candidates(connection: Connection, namespace: str, what: str) -> list[str]:
    """The names that a person may mean."""
    parent = namespace_name(namespace)
    if "://" in what or what.startswith("namespaces/"):
        return [what]
    if is_digest(what):
        return [f"{parent}/data/{what}"]
    if what.startswith("data/"):
        return [f"{parent}/{what}"]
    name = full_name(what, namespace)
    if "/aliases/" in name:
        stub, request = connection.registry, pb.GetVersionRequest(name=name)
        return [(await connection.call(stub.GetVersion, request, _PEER)).name]
    if "/" in what:
        return [name]
    # An adapter before a base of that name, as everywhere.
    return [name, name.replace("/adapters/", "/bases/", 1)] if "/adapters/" in name else [name]


async def _read(connection: Connection, name: str, direction: Direction, depth: int) -> Graph:
    stub = connection.registry
    request = pb.GetLineageRequest(name=name, direction=_WIRE[direction], depth=depth)
    answer = await connection.call(stub.GetLineage, request, _PEER)
    return Graph(
        tuple(Node(one.name, one.kind, dict(one.facts), one.deleted) for one in answer.nodes),
        tuple(Edge(one.result, one.source, one.relation) for one in answer.edges),
        answer.truncated,
    )


def to_dot(graph: Graph) -> str:
    """The graph for Graphviz; arrows lead from what was there to what was made from it."""
    ids = {node.name: f"n{index}" for index, node in enumerate(graph.nodes)}
    lines = ["digraph lineage {", "  rankdir=LR;", "  node [shape=box];"]
    for node in graph.nodes:
        style = ", style=dashed" if node.deleted else ""
        lines.append(f'  {ids[node.name]} [label="{_dot(node.kind)}\\n{_dot(node.title)}"{style}];')
    for edge in graph.edges:
        label = f'[label="{_dot(edge.relation)}"]'
        lines.append(f"  {ids[edge.source]} -> {ids[edge.result]} {label};")
    return "\n".join([*lines, "}"])


def to_mermaid(graph: Graph) -> str:
    """The graph for Mermaid, for example in a Markdown file."""
    ids = {node.name: f"n{index}" for index, node in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for node in graph.nodes:
        ended = " (deleted)" if node.deleted else ""
        label = f"{_mermaid(node.kind)}: {_mermaid(node.title)}{ended}"
        lines.append(f'  {ids[node.name]}["{label}"]')
    for edge in graph.edges:
        lines.append(f"  {ids[edge.source]} -->|{_mermaid(edge.relation)}| {ids[edge.result]}")
    return "\n".join(lines)


def _dot(text: str) -> str:
    """Text inside a quoted string of DOT."""
    return " ".join(text.replace("\\", "\\\\").replace('"', '\\"').split())


def _mermaid(text: str) -> str:
    """Text inside a quoted label of Mermaid, where #NUMBER; is a character."""
    plain = " ".join(text.split())
    return "".join(
        one if one.isalnum() or one in " .,:/@_-+=()" else f"#{ord(one)};" for one in plain
    )
