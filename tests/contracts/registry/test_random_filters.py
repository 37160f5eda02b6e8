"""Hundreds of drawn filters find on both databases what a plain evaluation of them in Python finds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from services.registry.catalogue.base import Catalogue
from services.registry.catalogue.blob_index import BlobIndex
from services.registry.catalogue.database import Database
from services.registry.catalogue.finding import Finder
from services.registry.catalogue.lives import Lives
from services.registry.domain import Version
from services.registry.find.listings import NEWEST, VERSION_FIELDS, Listing
from services.registry.find.parser import parse_filter
from services.registry.find.tree import (
    And,
    FieldKind,
    Node,
    Not,
    Op,
    Or,
    Present,
    Restriction,
    Text,
)
from services.registry.find.values import OPS
from tests.support.catalogue import BASE, BLOB, BOT, NS, adapter, version

OTHER = f"{NS}/adapters/other"
FILTERS = 300
# What a field is compared with: what there is, nearly what there is, and what there is not.
VALUES: Mapping[str, tuple[str, ...]] = {
    "name": ("bot", "bot:1", "other:1", "bot:9", "b*", "o*", BOT, f"{OTHER}/versions/2", f"{NS}/*"),
    "number": ("1", "2", "2.5", "-1"),
    "base": ("tiny", "ti*", "x", BASE.name, "TINY"),
    "method": ("lora", "qlora", "q*", "LORA", ""),
    "kind": ("adapter", "base"),
    "rank": ("4", "8", "8.0", "16", "1e1"),
    "size_bytes": ("9", "30", "1000000000000"),
    "digest": ("sha256:1", "sha256:*", "HA256"),
    "fingerprint": ("", "*"),
    "metrics.loss": ("0.5", "0.25", "1", "-1e300", "1e300"),
    "metrics.none": ("0",),
    "data_digest": ("sha256:d", "sha256:e", "sha*"),
    "job": ("j", "k", f"{NS}/jobs/j", f"{NS}/jobs/*", "J"),
    "description": ("", "100%", "0_", "says*", "it's", '\\"'),
    "labels.a": ("1", "2", "*", ""),
    "labels.b/c": ("x", "X"),
    "create_time": ("2020-01-01", "2100-01-01T00:00:00+02:00"),
    "actor": ("", "ann"),
    "state": ("active", "deleted", "purged"),
}
COMPARE: Mapping[Op, Callable[[Any, Any], bool]] = {
    Op.EQUAL: lambda mine, theirs: mine == theirs,
    Op.LESS: lambda mine, theirs: mine < theirs,
    Op.AT_MOST: lambda mine, theirs: mine <= theirs,
    Op.MORE: lambda mine, theirs: mine > theirs,
    Op.AT_LEAST: lambda mine, theirs: mine >= theirs,
}


@pytest.fixture
async def everything(database: Database, catalogue: Catalogue) -> list[Version]:
    """Versions of two adapters; one is deleted and one purged."""
    await BlobIndex(database).register(BLOB, 9)
    await catalogue.create_base(BASE)
    for name in ("bot", "other"):
        await catalogue.create_adapter(adapter(name), None)
    made: list[Version] = []
    for number in range(1, 9):
        parent = BOT if number <= 5 else OTHER
        loss = (0.5, 0.25, math.nan, math.inf, None)[number % 5]
        new = version(
            number,
            parent,
            metrics={} if loss is None else {"loss": loss},
            labels=({}, {"a": "1"}, {"a": "2", "b/c": "x"}, {"a": ""})[number % 4],
        )
        lineage = new.manifest.lineage
        if number % 3 == 0:
            lineage = replace(lineage, job=f"{NS}/jobs/k", data_digest="sha256:e")
        elif number % 3 == 1:
            lineage = replace(lineage, job="", data_digest="")
        manifest = replace(
            new.manifest,
            rank=(4, 8, 16)[number % 3],
            method=("lora", "qlora")[number % 2],
            files=[replace(new.manifest.files[0], size_bytes=(9, 30)[number % 2])],
            lineage=lineage,
        )
        said = ("", "Says 100% it's", 'says "0_"')[number % 3]
        made.append(
            await catalogue.commit_version(replace(new, manifest=manifest, description=said), None)
        )
    lives = Lives(database, timedelta(days=1))
    for ended in (2, 3):
        await lives.delete(f"{BOT}/versions/{ended}")
    await lives.purge(f"{BOT}/versions/3")
    return [await catalogue.get_version(one.parent, one.number) for one in made]


def drawn(dice: random.Random, depth: int = 3) -> str:
    """The text of a filter."""
    if depth == 0 or dice.random() < 0.3:
        return comparison(dice)
    match dice.choice(("and", "or", "not", "space")):
        case "and":
            return f"({drawn(dice, depth - 1)}) AND ({drawn(dice, depth - 1)})"
        case "or":
            return f"({drawn(dice, depth - 1)} OR {comparison(dice)})"
        case "not":
            return f"NOT ({drawn(dice, depth - 1)})"
        case _:
            return f"{comparison(dice)} ({drawn(dice, depth - 1)})"


def comparison(dice: random.Random) -> str:
    field = dice.choice(list(VALUES))
    kind = VERSION_FIELDS[field.partition(".")[0]]
    op, value = dice.choice(OPS[kind]), dice.choice(VALUES[field])
    if kind is FieldKind.METRICS and op is Op.HAS:
        value = "*"
    return f'{field} {op.value} "{value}"'


def holds(node: Node | None, found: Version) -> bool:
    """Whether a filter is true of a version."""
    match node:
        case None:
            return True
        case And():
            return all(holds(part, found) for part in node.parts)
        case Or():
            return any(holds(part, found) for part in node.parts)
        case Not():
            return not holds(node.part, found)
        case Restriction(op=Op.NOT_EQUAL):
            return not holds(Restriction(node.field, node.key, Op.EQUAL, node.value), found)
        case Restriction(field="name", value=Text(text=text, is_prefix=False), op=Op.EQUAL) if (
            ":" in text or "/versions/" in text
        ):
            short = found.parent.rpartition("/")[2]
            return text in (f"{short}:{found.number}", f"{found.parent}/versions/{found.number}")
        case Restriction():
            return compared(node, written(node, found))


def compared(node: Restriction, mine: Any) -> bool:
    """Whether a field's value compares so; one that is not there never does."""
    if mine is None:
        return False
    match node.value:
        case Present():
            # A label may be empty; its being there is what is asked for.
            return bool(mine != "") or node.field == "labels"
        case Text(text=text, is_prefix=is_prefix):
            if node.op is Op.HAS:
                return text.lower() in str(mine).lower()
            return str(mine).startswith(text) and mine != "" if is_prefix else bool(mine == text)
        case _:
            return COMPARE[node.op](mine, node.value)


def written(node: Restriction, found: Version) -> Any:
    """A field's value in the form, short or full, that the filter has it in; None for none."""
    manifest, lineage = found.manifest, found.manifest.lineage
    text = node.value.text if isinstance(node.value, Text) else ""
    full = "/" in text
    match node.field:
        case "name":
            return found.parent if full and node.op is not Op.HAS else found.parent.split("/")[3]
        case "base":
            return manifest.base if full else manifest.base.split("/")[3]
        case "job":
            return (lineage.job if full else lineage.job.rpartition("/")[2]) or None
        case "data_digest":
            return lineage.data_digest or None
        case "metrics":
            value = lineage.metrics.get(node.key)
            return None if value is None or math.isnan(value) else value
        case "labels":
            return found.labels.get(node.key)
        case "state":
            if found.life.purge_time:
                return "purged"
            return "deleted" if found.life.delete_time else "active"
        case "actor":
            return found.life.actor
        case "fingerprint":
            return ""
        case "number" | "digest" | "description" | "create_time":
            return getattr(found, node.field)
        case _:
            return getattr(manifest, node.field)


@pytest.mark.parametrize("seed", range(2))
async def test_a_drawn_filter_finds_what_python_finds(
    database: Database, everything: list[Version], seed: int
) -> None:
    dice, finder, sizes = random.Random(seed), Finder(database), set[int]()
    for _ in range(FILTERS // 2):
        text = drawn(dice)
        node = parse_filter(text, VERSION_FIELDS)
        listing = Listing(f"{NS}/adapters/-", 100, node, NEWEST, show_deleted=True)
        page = await finder.versions(listing)
        wanted = [one for one in everything if holds(node, one)]
        assert {one.digest for one in page.items} == {one.digest for one in wanted}, text
        sizes.add(len(wanted))
    assert len(sizes) > 5, "the filters drawn tell little apart"
