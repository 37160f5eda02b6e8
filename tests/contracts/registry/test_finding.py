"""Filters, orders and pages on both databases, and that no page costs more than another."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from graft.errors import GraftError, Reason
from sqlalchemy import event, text

from services.registry.catalogue.base import Catalogue, NewVersion
from services.registry.catalogue.blob_index import BlobIndex
from services.registry.catalogue.database import Database
from services.registry.catalogue.finding import Finder
from services.registry.catalogue.lives import Lives
from services.registry.catalogue.secrets import shared_secret
from services.registry.catalogue.updates import NewWords, Updates
from services.registry.domain import Adapter, Base, Version
from services.registry.find.listings import (
    ADAPTER_FIELDS,
    BASE_FIELDS,
    BY_NAME,
    MODEL_ORDERS,
    NAMESPACE_ORDERS,
    NEWEST,
    NEWEST_NUMBER,
    VERSION_FIELDS,
    VERSION_ORDERS,
    Listing,
)
from services.registry.find.order import Order, parse_order
from services.registry.find.parser import parse_filter
from tests.support.catalogue import BASE, BLOB, BOT, NS, adapter, version

ALL = f"{NS}/adapters/-"
OTHER = f"{NS}/adapters/other"


def made(
    number: int,
    parent: str = BOT,
    metrics: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    rank: int = 8,
    size_bytes: int = 9,
    **manifest: Any,
) -> NewVersion:
    """A new version with what it is found by."""
    new = version(number, parent, metrics if metrics is not None else {}, labels)
    files = [replace(new.manifest.files[0], size_bytes=size_bytes)]
    return replace(new, manifest=replace(new.manifest, rank=rank, files=files, **manifest))


@pytest.fixture
async def stored(database: Database, catalogue: Catalogue) -> Catalogue:
    """Two adapters with versions of several ranks, metrics, labels and origins."""
    await BlobIndex(database).register(BLOB, 9)
    await catalogue.create_base(BASE)
    await catalogue.create_adapter(replace(adapter(), labels={"team": "a", "a.b/c": "x"}), None)
    await catalogue.create_adapter(
        replace(adapter("other"), description="Says 100 % nothing_", labels={}), None
    )
    other = version(9, OTHER).manifest.lineage
    for new in (
        made(1, metrics={"loss": 0.5, "acc": 0.1}, rank=8, size_bytes=30, labels={"a": "1"}),
        made(2, metrics={"loss": 0.25}, rank=16, size_bytes=10, method="qlora"),
        made(3, rank=4, size_bytes=20, labels={"a": "2"}),
        made(4, metrics={"loss": math.inf, "acc": 0.9}, rank=8, size_bytes=30),
        made(5, metrics={"loss": math.nan}, rank=64, size_bytes=5),
        made(
            6,
            OTHER,
            rank=8,
            lineage=replace(other, job=f"{NS}/jobs/k", data_digest="sha256:e", metrics={}),
        ),
    ):
        await catalogue.commit_version(new, None)
    return catalogue


class Lister:
    """Lists by text, as a request does."""

    def __init__(self, database: Database) -> None:
        self._finder = Finder(database)

    async def adapters(self, where: str = "", order: str = "", **options: Any) -> list[str]:
        """Short names of all adapters that a filter finds."""
        listing = Listing(
            NS,
            options.pop("limit", 2),
            parse_filter(where, ADAPTER_FIELDS),
            parse_order(order, MODEL_ORDERS, BY_NAME),
            **options,
        )
        return [short(one) for one in await everything(self._finder.adapters, listing)]

    async def bases(self, where: str = "") -> list[str]:
        """Short names of all bases that a filter finds."""
        listing = Listing(NS, 2, parse_filter(where, BASE_FIELDS), BY_NAME)
        return [short(one) for one in await everything(self._finder.bases, listing)]

    async def versions(
        self, where: str = "", order: str = "", parent: str = BOT, **options: Any
    ) -> list[str]:
        """Short names of all versions that a filter finds, in pages of two."""
        whole = parent.endswith("/-")
        fields = NAMESPACE_ORDERS if whole else VERSION_ORDERS
        listing = Listing(
            parent,
            options.pop("limit", 2),
            parse_filter(where, VERSION_FIELDS),
            parse_order(order, fields, NEWEST if whole else NEWEST_NUMBER),
            **options,
        )
        found = await everything(self._finder.versions, listing)
        return [short(one) if whole else short(one).partition(":")[2] for one in found]


async def everything(list_page: Any, listing: Listing) -> list[Any]:
    """The items of all pages, each of which is full but the last."""
    found: list[Any] = []
    while True:
        page = await list_page(listing)
        found += page.items
        if page.next_key is None:
            return found
        assert len(page.items) == listing.limit
        listing = replace(listing, after=page.next_key)


def short(found: Adapter | Base | Version) -> str:
    """ "bot" or "bot:7"."""
    if isinstance(found, Version):
        return f"{found.parent.rpartition('/')[2]}:{found.number}"
    return found.name.rpartition("/")[2]


@pytest.fixture
def lister(database: Database, stored: Catalogue) -> Lister:
    """Lists what is stored."""
    return Lister(database)


VERSIONS = {
    "rank = 8": "41",
    "rank != 8": "532",
    "rank >= 16": "52",
    "rank < 7.5": "3",
    "NOT rank = 8 AND rank <= 16": "32",
    "-rank = 8": "532",
    "rank = 4 OR rank = 64": "53",
    # OR binds closer than AND.
    "rank = 8 AND number = 1 OR number = 2": "1",
    "(rank = 8 AND number = 1) OR number = 2": "21",
    "rank = 8 number = 1": "1",
    "size_bytes > 20": "41",
    "metrics.loss < 0.5": "2",
    "metrics.loss >= 0.25": "421",
    "metrics.loss = 0.5": "1",
    "metrics.loss != 0.5": "5432",
    "metrics:loss": "421",
    "metrics.loss:*": "421",
    "NOT metrics:loss": "53",
    "metrics.acc > 0.5 AND metrics.loss > 1": "4",
    "labels.a = 1": "1",
    "labels.a != 1": "5432",
    "labels:a": "31",
    'labels."a" = "2"': "3",
    "labels.a:*": "31",
    "method = qlora": "2",
    "method = lo*": "5431",
    "method : LOR": "54321",
    "kind = adapter": "54321",
    "kind = base": "",
    "digest = sha256:3": "3",
    "base = tiny": "54321",
    f'base = "{BASE.name}"': "54321",
    'base = "ti*"': "54321",
    "base = other": "",
    "name = bot": "54321",
    'name = "b*"': "54321",
    "name = bot:3": "3",
    f'name = "{BOT}/versions/3"': "3",
    "name = other": "",
    "job = j": "54321",
    f'job = "{NS}/jobs/j"': "54321",
    "job = k": "",
    "job != k": "54321",
    "data_digest = sha256:d": "54321",
    'data_digest = "sha256:*"': "54321",
    "data_digest = sha256:e": "",
    "state = active": "54321",
    "state != active": "",
    'create_time > "2020-01-01"': "54321",
    "create_time < 2020-01-01T00:00:00+02:00": "",
    'description = ""': "54321",
    "description:*": "",
    "rank = 8 AND rank = 16": "",
    f"number = {2**63}": "",
    "number = 1e300": "",
    "labels.a = \"' OR '1' = '1\"": "",
}


async def test_a_filter_finds_versions(lister: Lister) -> None:
    found = {where: "".join(await lister.versions(where, limit=9)) for where in VERSIONS}
    assert found == VERSIONS


async def test_other_namespaces_are_not_looked_into(lister: Lister, stored: Catalogue) -> None:
    elsewhere = "namespaces/other/adapters/elsewhere"
    await stored.create_adapter(adapter("elsewhere", ns="other"), None)
    await stored.commit_version(made(1, elsewhere, labels={"a": "1"}), None)
    assert await lister.adapters() == ["bot", "other"]
    assert await lister.versions("labels.a = 1", parent=ALL) == ["bot:1"]
    assert await lister.versions("labels.a = 1", parent="namespaces/other/adapters/-") == [
        "elsewhere:1"
    ]


ADAPTERS = {
    "": ["bot", "other"],
    "name = bo*": ["bot"],
    "name = BOT": [],
    "name : OTH": ["other"],
    # Contained in every full name, but in no short one.
    "name : adapters": [],
    "labels.team = a": ["bot"],
    "labels.team != a": ["other"],
    "labels.a.b/c = x": ["bot"],
    'labels."a.b/c" = "x"': ["bot"],
    "latest_version = 5": ["bot"],
    'description : "100 %"': ["other"],
    'description : "nothing_"': ["other"],
    'description : "0_%"': [],
    'description = "answers"': ["bot"],
    'description = "Answers"': [],
    "base = tiny AND NOT name = bot": ["other"],
}


async def test_a_filter_finds_adapters(lister: Lister) -> None:
    assert {where: await lister.adapters(where) for where in ADAPTERS} == ADAPTERS


async def test_a_filter_finds_bases(lister: Lister) -> None:
    for where in ("", "name = tiny", "fingerprint = sha256:f", "fingerprint = sha*", "source:TINY"):
        assert await lister.bases(where) == ["tiny"]
    for where in ("fingerprint = sha256:", "labels:x", "name = t"):
        assert await lister.bases(where) == []


ORDERS = {
    "": "54321",
    "number": "12345",
    "rank": "31425",
    "rank desc": "52413",
    "size_bytes": "52314",
    "size_bytes desc": "41325",
    "create_time": "12345",
    # Who has no such metric comes last, both ways.
    "metrics.loss": "21435",
    "metrics.loss desc": "41253",
    "metrics.acc": "14235",
    "metrics.none": "12345",
}


async def test_pages_in_an_order_follow_each_other(lister: Lister) -> None:
    for limit in (1, 2, 3, 100):
        found = {order: await lister.versions(order=order, limit=limit) for order in ORDERS}
        assert {order: "".join(one) for order, one in found.items()} == ORDERS


async def test_a_filter_and_an_order_go_together(lister: Lister) -> None:
    found = await lister.versions("rank <= 16", "metrics.loss desc", limit=1)
    assert "".join(found) == "4123"


async def test_all_versions_of_a_namespace_are_listed(lister: Lister) -> None:
    newest = await lister.versions(parent=ALL)
    assert newest == ["other:1", "bot:5", "bot:4", "bot:3", "bot:2", "bot:1"]
    assert await lister.versions(parent=ALL, order="name desc") == newest
    assert await lister.versions("job = k", parent=ALL) == ["other:1"]
    by_loss = await lister.versions("rank = 8", "metrics.loss", parent=ALL)
    assert by_loss == ["bot:1", "bot:4", "other:1"]
    assert await lister.versions(parent=f"{NS}/bases/-") == []


async def test_what_is_deleted_is_listed_when_it_is_asked_for(
    database: Database, lister: Lister
) -> None:
    lives = Lives(database, timedelta(days=1))
    await lives.delete(f"{BOT}/versions/2")
    await lives.delete(f"{BOT}/versions/3")
    await lives.purge(f"{BOT}/versions/3")
    assert "".join(await lister.versions()) == "541"
    assert "".join(await lister.versions(show_deleted=True)) == "54321"
    assert "".join(await lister.versions("state = deleted")) == "2"
    assert "".join(await lister.versions("state = purged OR state = active")) == "5431"
    await lives.delete(BOT)
    assert await lister.adapters() == ["other"]
    assert await lister.adapters(show_deleted=True) == ["bot", "other"]
    # Its versions are hidden with it.
    assert await lister.versions(parent=ALL) == ["other:1"]


async def test_versions_of_nothing_are_not_found(lister: Lister) -> None:
    with pytest.raises(GraftError) as raised:
        await lister.versions(parent=f"{NS}/adapters/none")
    assert raised.value.reason is Reason.ADAPTER_NOT_FOUND


async def test_what_comes_while_one_reads_neither_repeats_nor_hides_anything(
    database: Database, stored: Catalogue
) -> None:
    finder = Finder(database)
    listing = Listing(BOT, 2, None, Order("rank"))
    first = await finder.versions(listing)
    await stored.commit_version(made(7, rank=1), None)
    await stored.commit_version(made(8, rank=8), None)
    rest = await everything(finder.versions, replace(listing, after=first.next_key))
    assert [one.number for one in (*first.items, *rest)] == [3, 1, 4, 7, 2, 5]


@pytest.mark.parametrize("parent", [BOT, ALL], ids=["of one", "of all"])
async def test_in_every_order_each_is_read_once_while_others_come(
    database: Database, stored: Catalogue, parent: str
) -> None:
    finder, number = Finder(database), 100
    fields = VERSION_ORDERS if parent == BOT else NAMESPACE_ORDERS
    orders = [f"{one}.loss" if one == "metrics" else one for one in fields]
    for order in (f"{one} {way}" for one in orders for way in ("asc", "desc")):
        listing = Listing(parent, 2, None, parse_order(order, fields, NEWEST))
        there = await everything(finder.versions, replace(listing, limit=100))
        before = [(one.parent, one.number) for one in there]
        seen: list[tuple[str, int]] = []
        after: str | None = ""
        for loss in (0.3, 0.5, 0.7, *[None] * 100):
            page = await finder.versions(replace(listing, after=after or None))
            seen += [(one.parent, one.number) for one in page.items]
            after = page.next_key
            if after is None:
                break
            if loss is not None:
                number += 1
                metrics, rank = {"loss": loss}, int(loss * 20)
                await stored.commit_version(made(number, metrics=metrics, rank=rank), None)
        assert len(seen) == len(set(seen)), order
        # Those that were there are read in the order in which they were.
        assert [one for one in seen if one in before] == before, order


async def test_processes_that_start_at_once_share_one_key(database: Database) -> None:
    keys = await asyncio.gather(*(shared_secret(database, "page-tokens") for _ in range(8)))
    assert len(set(keys)) == 1
    assert len(keys[0]) == 32
    assert await shared_secret(database, "other") != keys[0]


async def test_words_are_replaced_with_a_new_etag_an_event_and_what_was_before(
    database: Database, stored: Catalogue, lister: Lister
) -> None:
    updates = Updates(database)
    before, revision = await stored.get_version(BOT, 1), await stored.revision()
    name = f"{BOT}/versions/1"
    changed = await updates.update(NewWords(name, "good", {"b": "3"}, before.life.etag))
    assert (changed.description, changed.labels) == ("good", {"b": "3"})
    assert changed == await stored.get_version(BOT, 1)
    assert changed.life.etag != before.life.etag
    assert await lister.versions("labels.b = 3 AND NOT labels:a") == ["1"]
    (told,) = await stored.events(revision, 10)
    assert (told.action.value, told.resource) == ("updated", changed)
    async with database.engine.connect() as connection:
        query = "SELECT detail FROM audit_entries ORDER BY number DESC LIMIT 1"
        detail = await connection.scalar(text(query))
    assert '"after": {"description": "good", "labels": {"b": "3"}}' in detail
    assert '"before": {"description": "", "labels": {"a": "1"}}' in detail
    # What says the same already makes no event.
    assert await updates.update(NewWords(name, "good")) == changed
    assert await stored.revision() == revision + 1


async def test_an_update_of_what_was_changed_deleted_or_never_there_is_refused(
    database: Database, stored: Catalogue
) -> None:
    updates = Updates(database)
    await Lives(database, timedelta(days=1)).delete(OTHER)
    refused = {
        Reason.ETAG_MISMATCH: NewWords(BOT, "x", etag="stale"),
        Reason.DELETED: NewWords(OTHER, "x"),
        Reason.ADAPTER_NOT_FOUND: NewWords(f"{NS}/adapters/none", "x"),
        Reason.VERSION_NOT_FOUND: NewWords(f"{BOT}/versions/99", "x"),
    }
    for reason, words in refused.items():
        with pytest.raises(GraftError) as raised:
            await updates.update(words)
        assert raised.value.reason is reason
    assert (await stored.get_adapter(BOT)).description == "answers"


async def test_labels_of_updates_that_share_a_commit_are_those_of_the_last(
    database: Database, stored: Catalogue, lister: Lister
) -> None:
    updates = Updates(database)
    await asyncio.gather(
        *(updates.update(NewWords(BOT, labels={f"k{n}": ""})) for n in range(20)),
        stored.create_adapter(replace(adapter("new"), labels={"old": "1"}), None),
        updates.update(NewWords(f"{NS}/adapters/new", labels={"fresh": "1"})),
    )
    (last,) = (await stored.get_adapter(BOT)).labels
    found = [n for n in range(20) if await lister.adapters(f"labels:k{n}")]
    assert [f"k{n}" for n in found] == [last]
    assert await lister.adapters("labels:old") == []
    assert await lister.adapters("labels.fresh = 1") == ["new"]


@asynccontextmanager
async def statements(database: Database) -> AsyncIterator[list[tuple[str, Any]]]:
    """The queries that run meanwhile, with their parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_1: Any, _2: Any, statement: str, parameters: Any, _3: Any, _4: Any) -> None:
        seen.append((statement, parameters))

    engine = database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", note)


async def plan(database: Database, statement: str, parameters: Any) -> str:
    """How the database runs a query, if it can without sorting and reading whole tables."""
    is_sqlite = database.engine.dialect.name == "sqlite"
    async with database.engine.connect() as connection:
        if not is_sqlite:
            for way in ("seqscan", "sort", "bitmapscan", "incremental_sort", "hashjoin"):
                await connection.execute(text(f"SET LOCAL enable_{way} = off"))
        explain = "EXPLAIN QUERY PLAN " if is_sqlite else "EXPLAIN "
        rows = await connection.exec_driver_sql(explain + statement, parameters)
        return "\n".join(str(row[-1]) for row in rows)


PLANNED = {
    BOT: ("number desc", "create_time", "rank desc", "size_bytes", "metrics.loss desc"),
    ALL: ("create_time desc", "rank", "size_bytes desc", "name", "metrics.loss"),
}


@pytest.mark.parametrize("parent", [BOT, ALL], ids=["of one", "of all"])
async def test_an_index_leads_to_each_page_and_nothing_is_sorted(
    database: Database, lister: Lister, parent: str
) -> None:
    for order in PLANNED[parent]:
        async with statements(database) as seen:
            await lister.versions(order=order, parent=parent, limit=1)
        queries = [one for one in seen if "ORDER BY" in one[0]]
        assert len(queries) >= 5
        for statement, parameters in queries:
            check_plan(await plan(database, statement, parameters))


async def test_adapters_are_read_by_an_index_too(database: Database, lister: Lister) -> None:
    async with statements(database) as seen:
        for order in ("name", "name desc", "create_time desc"):
            await lister.adapters(order=order, limit=1)
    for statement, parameters in seen:
        check_plan(await plan(database, statement, parameters))


def check_plan(steps: str) -> None:
    """Nothing is sorted, and a page is begun where it begins."""
    assert "TEMP B-TREE" not in steps, steps
    assert "SCAN versions" not in steps, steps
    assert "Sort" not in steps, steps
    for step in steps.splitlines():
        assert "Filter:" not in step or "ROW(" not in step, steps
