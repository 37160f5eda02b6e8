"""How lineages are drawn: the tree of a terminal, DOT and Mermaid, with names as people choose them."""

from __future__ import annotations

import io

from graft.cli.lineage import draw_tree
from graft.lineage import Direction, Edge, Graph, Node, to_dot, to_mermaid
from rich.console import Console

NS = "namespaces/default"
BASE, QUANTIZED = f"{NS}/bases/tiny", f"{NS}/bases/tiny/versions/1"
BOT = f"{NS}/adapters/bot"
ONE, TWO = f"{BOT}/versions/1", f"{BOT}/versions/2"
DATA = f"{NS}/data/sha256:{'d' * 64}"
NASTY = 'hf://x/"a\\b" <c> [d]\n#e'
EDGES = (
    Edge(QUANTIZED, BASE, "base"),
    Edge(ONE, QUANTIZED, "base"),
    Edge(TWO, QUANTIZED, "base"),
    Edge(TWO, ONE, "parent"),
    Edge(TWO, DATA, "data"),
    Edge(ONE, NASTY, "source"),
)


def node(name: str, kind: str = "version", deleted: bool = False, **facts: str) -> Node:
    """A node with facts."""
    return Node(name, kind, facts, deleted)


def graph(first: Node, *others: Node, truncated: bool = False) -> Graph:
    """What edges there are between some of the nodes."""
    nodes = (first, *others)
    names = {one.name for one in nodes}
    edges = [one for one in EDGES if {one.result, one.source} <= names]
    return Graph(nodes, edges, truncated)


NODES = (
    node(ONE, deleted=True, state="purged"),
    node(QUANTIZED, quantization="nf4"),
    node(BASE, "base"),
    node(DATA, "data"),
    node(NASTY, "source"),
)
SECOND = node(TWO, method="qlora", rank="8", digest="sha256:" + "a" * 64)


def drawn(graph: Graph, direction: Direction) -> list[str]:
    """The lines of the tree."""
    console = Console(file=io.StringIO(), width=200)
    console.print(draw_tree(graph, direction))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_tree_hangs_each_source_below_what_was_made_from_it() -> None:
    assert drawn(graph(SECOND, *NODES[:4]), Direction.SOURCES) == [
        "version bot:2  qlora  rank 8  aaaaaaaaaaaa",
        "├── base version tiny:1  nf4",
        "│   └── base tiny",
        "├── parent version bot:1 purged",
        "│   └── base version tiny:1  (above)",
        "└── data dddddddddddd",
    ]


def test_both_ways_have_a_branch_each() -> None:
    first, quantized = NODES[0], NODES[1]
    assert drawn(graph(first, quantized, SECOND), Direction.BOTH) == [
        "version bot:1 purged",
        "├── made from",
        "│   └── base version tiny:1  nf4",
        "└── became",
        "    └── parent version bot:2  qlora  rank 8  aaaaaaaaaaaa",
    ]


def test_an_adapter_is_drawn_by_its_versions() -> None:
    adapter = node(BOT, "adapter")
    edges = (Edge(BOT, ONE, "version"), Edge(BOT, TWO, "version"), *EDGES[1:4])
    nodes = (adapter, NODES[0], SECOND, NODES[1])
    assert drawn(Graph(nodes, edges, False), Direction.SOURCES) == [
        "adapter bot",
        "├── version bot:2  qlora  rank 8  aaaaaaaaaaaa",
        "│   ├── base version tiny:1  nf4",
        "│   └── parent version bot:1 purged",
        "│       └── base version tiny:1  nf4",
        "└── version bot:1 purged",
        "    └── base version tiny:1  nf4",
    ]


def test_dot_quotes_whatever_a_name_holds() -> None:
    assert to_dot(graph(NODES[0], NODES[4])).splitlines()[3:] == [
        '  n0 [label="version\\nbot:1", style=dashed];',
        '  n1 [label="source\\nhf://x/\\"a\\\\b\\" <c> [d] #e"];',
        '  n1 -> n0 [label="source"];',
        "}",
    ]


def test_mermaid_escapes_whatever_a_name_holds() -> None:
    text = to_mermaid(graph(NODES[0], NODES[4]))
    assert text.splitlines() == [
        "flowchart LR",
        '  n0["version: bot:1 (deleted)"]',
        '  n1["source: hf://x/#34;a#92;b#34; #60;c#62; #91;d#93; #35;e"]',
        "  n1 -->|source| n0",
    ]
