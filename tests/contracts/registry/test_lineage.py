"""What was made from what, on both databases: a base, its quantized version, and a chain of adapters."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from graft.errors import GraftError, Reason

from services.registry.catalogue.base import Catalogue, NewAdapter, NewVersion
from services.registry.catalogue.blob_index import BlobIndex
from services.registry.catalogue.database import Database
from services.registry.catalogue.lineage import Direction, Lineage, LineageGraph
from services.registry.catalogue.lives import Lives
from services.registry.domain import BaseContent, Fingerprint, Kind
from tests.support.catalogue import BASE, BLOB, BOT, NS, adapter, version

JOB, DATA = f"{NS}/jobs/j", f"{NS}/data/sha256:d"
QUANTIZED = f"{BASE.name}/versions/1"
FINGERPRINT = Fingerprint("sha256:q", "sha256:c", "sha256:t", "sha256:qw")


def of_adapter(number: int, **lineage: Any) -> NewVersion:
    """A version of bot, trained on the quantized base from data d by job j."""
    new = version(number)
    origin = replace(new.manifest.lineage, data_rows=20, spec_json="{}", attempt=2, **lineage)
    return replace(
        new,
        manifest=replace(new.manifest, base_fingerprint="sha256:q", lineage=origin, method="qlora"),
    )


def quantized() -> NewVersion:
    """A version of the base."""
    new = version(1, BASE.name)
    lineage = replace(
        new.manifest.lineage, job="", data_digest="", metrics={}, sources=("hf://org/tiny@abc",)
    )
    manifest = replace(
        new.manifest,
        base="",
        base_fingerprint="",
        kind=Kind.BASE,
        method="quantize",
        quantization="nf4",
        fingerprint=FINGERPRINT,
        lineage=lineage,
    )
    content = BaseContent(BASE.name, FINGERPRINT, BASE.config_json, BASE.modules)
    return replace(new, digest="sha256:qv", manifest=manifest, content=content)


@pytest.fixture
async def graph(database: Database, catalogue: Catalogue) -> LineageGraph:
    """base <- quantized version <- bot:1 <- bot:2, both from data d by job j."""
    await BlobIndex(database).register(BLOB, 9)
    await catalogue.create_base(BASE)
    await catalogue.create_adapter(adapter(), None)
    # Before the base's version is there: what they were trained on is told by the fingerprint.
    await catalogue.commit_version(of_adapter(1), None)
    await catalogue.commit_version(quantized(), None)
    await catalogue.commit_version(of_adapter(2, parent_versions=(f"{BOT}/versions/1",)), None)
    return LineageGraph(database)


def short(name: str) -> str:
    """Without the namespace."""
    return name.removeprefix(f"{NS}/")


def edges(lineage: Lineage) -> set[tuple[str, str, str]]:
    """(result, relation, source) of all edges."""
    return {(short(one.result), one.relation, short(one.source)) for one in lineage.edges}


ONE, TWO, BASE_ONE = "adapters/bot/versions/1", "adapters/bot/versions/2", "bases/tiny/versions/1"
OF_BASE = {
    (BASE_ONE, "base", "bases/tiny"),
    (BASE_ONE, "source", "hf://org/tiny@abc"),
}
OF_ONE = {
    (ONE, "base", "bases/tiny"),
    (ONE, "base", BASE_ONE),
    (ONE, "job", "jobs/j"),
    (ONE, "data", "data/sha256:d"),
}
OF_TWO = {(TWO, relation, source) for _, relation, source in OF_ONE} | {(TWO, "parent", ONE)}


async def test_a_version_is_followed_up_to_all_that_it_was_made_from(graph: LineageGraph) -> None:
    lineage = await graph.around(f"{NS}/{TWO}", Direction.SOURCES, 10)
    assert edges(lineage) == OF_TWO | OF_ONE | OF_BASE
    assert short(lineage.nodes[0].name) == TWO
    assert not lineage.truncated


async def test_everything_that_was_made_from_something_is_found(graph: LineageGraph) -> None:
    down = {edge for edge in OF_TWO | OF_ONE | OF_BASE if edge[1] != "source"}
    on_base = {edge for edge in down if edge[1] in ("base", "parent")}
    found = {
        BASE.name: on_base,
        QUANTIZED: on_base - {edge for edge in down if edge[2] == "bases/tiny"},
        JOB: {edge for edge in down if edge[1] in ("job", "parent")},
        DATA: {edge for edge in down if edge[1] in ("data", "parent")},
        f"{NS}/{ONE}": {(TWO, "parent", ONE)},
        f"{NS}/{TWO}": set(),
        f"{NS}/jobs/none": set(),
        "hf://org/tiny@abc": on_base - {edge for edge in down if edge[2] == "bases/tiny"}
        | {(BASE_ONE, "source", "hf://org/tiny@abc")},
    }
    for name, expected in found.items():
        lineage = await graph.around(name, Direction.RESULTS, 10)
        assert edges(lineage) == expected, name
        assert lineage.nodes[0].name == name


async def test_both_ways_are_up_and_down_and_not_sideways(graph: LineageGraph) -> None:
    assert edges(await graph.around(f"{NS}/{ONE}", Direction.BOTH, 10)) == (
        OF_ONE | OF_BASE | {(TWO, "parent", ONE)}
    )


async def test_an_adapter_shows_its_versions(graph: LineageGraph) -> None:
    lineage = await graph.around(BOT, Direction.SOURCES, 1)
    versions = {("adapters/bot", "version", ONE), ("adapters/bot", "version", TWO)}
    assert versions | OF_ONE | OF_TWO <= edges(lineage)
    down = await graph.around(BOT, Direction.RESULTS, 5)
    assert edges(down) == versions | {(TWO, "parent", ONE)}


async def test_depth_and_size_are_bounded_and_said(
    graph: LineageGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = await graph.around(f"{NS}/{TWO}", Direction.SOURCES, 1)
    assert edges(near) == OF_TWO
    # The base's version has a source of its own.
    assert near.truncated
    whole = await graph.around(f"{NS}/{TWO}", Direction.SOURCES, 2)
    assert (edges(whole), whole.truncated) == (OF_TWO | OF_ONE | OF_BASE, False)
    monkeypatch.setattr("services.registry.catalogue.lineage.MAX_NODES", 3)
    small = await graph.around(f"{NS}/{TWO}", Direction.SOURCES, 10)
    assert (len(small.nodes), small.truncated) == (3, True)


async def test_what_is_cut_one_way_is_followed_the_other_way_all_the_same(
    catalogue: Catalogue, graph: LineageGraph
) -> None:
    for number in range(3, 8):
        before = f"{BOT}/versions/{number - 1}"
        await catalogue.commit_version(of_adapter(number, parent_versions=(before,)), None)
    lineage = await graph.around(f"{BOT}/versions/5", Direction.BOTH, 2)
    parents = {edge[::2] for edge in edges(lineage) if edge[1] == "parent"}
    bot = "adapters/bot/versions"
    assert parents == {(f"{bot}/{number}", f"{bot}/{number - 1}") for number in (4, 5, 6, 7)}
    assert lineage.truncated


async def test_more_edges_than_an_answer_holds_are_said(
    graph: LineageGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.registry.catalogue.lineage.MAX_EDGES", 4)
    cut = await graph.around(f"{NS}/{TWO}", Direction.SOURCES, 10)
    assert (len(cut.edges), cut.truncated) == (4, True)


async def test_each_thing_comes_with_its_facts(graph: LineageGraph) -> None:
    lineage = await graph.around(f"{NS}/{TWO}", Direction.SOURCES, 10)
    nodes = {short(node.name): node for node in lineage.nodes}
    facts = nodes[TWO].facts
    expected = {
        "digest": "sha256:2",
        "method": "qlora",
        "rank": "8",
        "metrics.loss": "0.5",
        "libraries": "peft 1",
        "data_rows": "20",
        "attempt": "2",
    }
    assert expected.items() <= facts.items()
    assert facts["spec_digest"].startswith("sha256:")
    assert nodes[BASE_ONE].facts["quantization"] == "nf4"
    assert nodes["bases/tiny"].facts["fingerprint"] == BASE.fingerprint.digest
    assert {str(node.kind) for node in nodes.values()} == {
        "version", "base", "job", "data", "source",
    }  # fmt: skip


async def test_what_is_deleted_or_purged_is_there_as_such(
    database: Database, graph: LineageGraph
) -> None:
    lives = Lives(database, timedelta(days=1))
    await lives.delete(f"{NS}/{ONE}")
    for state in ("deleted", "purged"):
        lineage = await graph.around(f"{NS}/{TWO}", Direction.SOURCES, 10)
        (one,) = (node for node in lineage.nodes if short(node.name) == ONE)
        assert (one.deleted, one.facts["state"]) == (True, state)
        await lives.purge(f"{NS}/{ONE}")
    assert edges(lineage) == OF_TWO | OF_ONE | OF_BASE


async def test_versions_that_name_each_other_do_not_go_on_for_ever(
    catalogue: Catalogue, graph: LineageGraph
) -> None:
    later = f"{BOT}/versions/4"
    await catalogue.commit_version(of_adapter(3, parent_versions=(later,)), None)
    await catalogue.commit_version(of_adapter(4, parent_versions=(f"{BOT}/versions/3",)), None)
    for direction in Direction:
        found = edges(await graph.around(later, direction, 50))
        assert ("adapters/bot/versions/4", "parent", "adapters/bot/versions/3") in found
        assert ("adapters/bot/versions/3", "parent", "adapters/bot/versions/4") in found


async def test_a_version_of_a_parent_elsewhere_is_a_node_without_facts(
    catalogue: Catalogue, graph: LineageGraph
) -> None:
    away = "namespaces/far/adapters/x/versions/9"
    await catalogue.create_adapter(NewAdapter(f"{NS}/adapters/y", BASE.name, "", {}), None)
    new = of_adapter(5, parent_versions=(away,))
    await catalogue.commit_version(replace(new, parent=f"{NS}/adapters/y"), None)
    lineage = await graph.around(f"{NS}/adapters/y/versions/1", Direction.SOURCES, 1)
    (node,) = (node for node in lineage.nodes if node.name == away)
    assert (node.kind, node.facts, node.deleted) == ("version", {}, False)


async def test_what_is_not_there_is_told(graph: LineageGraph) -> None:
    absent = {
        f"{BOT}/versions/99": Reason.VERSION_NOT_FOUND,
        f"{NS}/adapters/none": Reason.ADAPTER_NOT_FOUND,
        f"{NS}/bases/none": Reason.BASE_NOT_FOUND,
    }
    for name, reason in absent.items():
        with pytest.raises(GraftError) as raised:
            await graph.around(name, Direction.BOTH, 10)
        assert raised.value.reason is reason
