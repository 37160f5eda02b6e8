"""`graft lineage`: what something was made from and what was made from it, as a tree or a graph."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import typer
from rich.text import Text
from rich.tree import Tree

from graft.cli.output import Output, ago, short_digest
from graft.cli.session import JsonOption, run
from graft.client import Client
from graft.lineage import Direction, Edge, Graph, Node, to_dot, to_mermaid
from graft.results import short_id

_METRICS = 3
_COLOURS = {"version": "green", "base": "cyan", "data": "yellow", "job": "magenta"}


class Format(StrEnum):
    """How a lineage is written."""

    TREE = "tree"
    DOT = "dot"
    MERMAID = "mermaid"
    JSON = "json"


def lineage(
    ctx: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="bot:7, bot@production, bot, bases/tiny, jobs/ID, sha256:... of data.",
        ),
    ],
    up: Annotated[bool, typer.Option("--up", help="Only what it was made from.")] = False,
    down: Annotated[bool, typer.Option("--down", help="Only what was made from it.")] = False,
    both: Annotated[bool, typer.Option("--both", help="Both; so by default.")] = False,
    depth: Annotated[int, typer.Option(min=1, max=50, help="How many steps at most.")] = 10,
    form: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.TREE,
    as_json: JsonOption = False,
) -> None:
    """Show what something was made from, and what was made from it."""
    chosen = Format.JSON if as_json else form
    out = Output(chosen is Format.JSON)
    direction = Direction.BOTH if both or up == down else (
        Direction.SOURCES if up else Direction.RESULTS
    )  # fmt: skip

    async def work(client: Client) -> None:
        graph = await client.lineage(what, direction=direction, depth=depth)
        match chosen:
            case Format.JSON:
                out.json(graph)
            case Format.DOT:
                out.note(to_dot(graph))
            case Format.MERMAID:
                out.note(to_mermaid(graph))
            case Format.TREE:
                out.show(draw_tree(graph, direction))
        if graph.truncated:
            out.warn("there is more: begin nearer to it, or go deeper with --depth.")

    run(ctx, out, work)


def draw_tree(graph: Graph, direction: Direction) -> Tree:
    """The graph as a tree from what was asked for; what was drawn already is named only."""
    root = graph.nodes[0]
    tree = Tree(_label(root, ""))
    drawing = _Drawing(graph)
    if root.kind == "adapter":
        drawing.add_versions(tree, root, direction)
        return tree
    if direction is not Direction.RESULTS:
        drawing.add(_branch(tree, "made from", direction), root, up=True)
    if direction is not Direction.SOURCES:
        drawing.add(_branch(tree, "became", direction), root, up=False)
    return tree


def _branch(tree: Tree, title: str, direction: Direction) -> Tree:
    return tree.add(Text(title, style="bold")) if direction is Direction.BOTH else tree


class _Drawing:
    """Adds what hangs on a node below it."""

    def __init__(self, graph: Graph) -> None:
        self._nodes = {node.name: node for node in graph.nodes}
        self._edges = graph.edges
        self._drawn: set[tuple[str, bool]] = set()

    def add(self, tree: Tree, node: Node, up: bool) -> None:
        """Adds the sources of a node, or with up=False its results."""
        self._drawn.add((node.name, up))
        for edge in self._of(node.name, up):
            far = self._nodes[edge.source if up else edge.result]
            again = (far.name, up) in self._drawn and bool(self._of(far.name, up))
            branch = tree.add(_label(far, edge.relation, again))
            if not again:
                self.add(branch, far, up)

    def add_versions(self, tree: Tree, adapter: Node, direction: Direction) -> None:
        """An adapter is its versions; below each is what hangs on it."""
        versions = [edge.source for edge in self._edges if edge.relation == "version"]
        for edge in self._of(adapter.name, up=True):
            if edge.relation != "version":
                tree.add(_label(self._nodes[edge.source], edge.relation))
        for name in sorted(versions, key=lambda name: int(short_id(name)), reverse=True):
            branch = tree.add(_label(self._nodes[name], ""))
            if direction is not Direction.RESULTS:
                self.add(branch, self._nodes[name], up=True)
            if direction is not Direction.SOURCES and self._of(name, up=False):
                below = branch.add(Text("became", style="bold"))
                self.add(below if direction is Direction.BOTH else branch, self._nodes[name], False)

    def _of(self, name: str, up: bool) -> Sequence[Edge]:
        if up:
            return [edge for edge in self._edges if edge.result == name]
        return [edge for edge in self._edges if edge.source == name and edge.relation != "version"]


def _label(node: Node, relation: str, again: bool = False) -> Text:
    text = Text()
    if relation and relation != node.kind:
        text.append(f"{relation} ", style="dim")
    text.append(f"{node.kind} ", style="dim")
    text.append(node.title, style=f"bold {_COLOURS.get(node.kind, '')}".strip())
    if node.deleted:
        text.append(f" {node.facts.get('state', 'deleted')}", style="red")
    text.append("  (above)" if again else f"  {facts_in_words(node)}".rstrip(), style="dim")
    return text


def facts_in_words(node: Node) -> str:
    """The main facts of a node in one line."""
    facts = node.facts
    made = facts.get("create_time", "")
    words = [
        facts.get("method", ""),
        facts.get("quantization", ""),
        f"rank {facts['rank']}" if "rank" in facts else "",
        short_digest(facts.get("digest") or facts.get("fingerprint", "")),
        f"{facts['data_rows']} rows" if "data_rows" in facts else "",
        *[
            f"{name.removeprefix('metrics.')} {value}"
            for name, value in facts.items()
            if name.startswith("metrics.")
        ][:_METRICS],
        ago(datetime.fromisoformat(made)) if made else "",
    ]
    return "  ".join(word for word in words if word)
