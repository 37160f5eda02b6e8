"""Quotas and what they count, on both databases."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from google.rpc import error_details_pb2
from graft.errors import GraftError, QuotaError, Reason, UnavailableError, to_status
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import tables
from services.registry.catalogue.base import Catalogue
from services.registry.catalogue.database import Database
from services.registry.catalogue.lives import Lives
from services.registry.catalogue.usage import Namespaces, Quota
from tests.support.catalogue import BOT, adapter, version


@pytest.fixture
def namespaces(database: Database, filled: Catalogue) -> Namespaces:
    """Of a catalogue with the adapter bot and two versions of 9 bytes."""
    return Namespaces(database)


async def test_a_namespace_says_what_it_uses_and_may_use(namespaces: Namespaces) -> None:
    found = await namespaces.get("default")
    assert (found.used_bytes, found.used_versions, found.used_adapters) == (18, 2, 1)
    assert found.quota == Quota()
    changed = await namespaces.set_quota("default", Quota(max_bytes=100), "budget")
    assert changed.quota == Quota(max_bytes=100)
    with pytest.raises(GraftError, match="namespaces/none") as raised:
        await namespaces.get("none")
    assert raised.value.reason is Reason.NAMESPACE_NOT_FOUND


@pytest.mark.parametrize(
    ("quota", "what"),
    [
        (Quota(max_bytes=20), "18 of 20 bytes, and 9 more"),
        (Quota(max_versions=2), "2 of 2 versions, and 1 more"),
    ],
)
async def test_a_version_too_many_is_refused_with_the_numbers(
    namespaces: Namespaces, filled: Catalogue, quota: Quota, what: str
) -> None:
    await namespaces.set_quota("default", quota, "")
    with pytest.raises(QuotaError, match=what) as raised:
        await filled.commit_version(version(3), None)
    assert not isinstance(raised.value, UnavailableError), "it is not tried again"
    assert (await namespaces.get("default")).used_versions == 2
    status, failure = to_status(raised.value), error_details_pb2.QuotaFailure()
    (packed,) = [one for one in status.details if one.Is(failure.DESCRIPTOR)]
    packed.Unpack(failure)
    assert failure.violations[0].subject == "namespaces/default"
    assert what in failure.violations[0].description


async def test_an_adapter_too_many_is_refused(namespaces: Namespaces, filled: Catalogue) -> None:
    await namespaces.set_quota("default", Quota(max_adapters=1), "")
    with pytest.raises(QuotaError, match="1 of 1 adapters"):
        await filled.create_adapter(adapter("second"), None)


async def test_a_limit_below_what_is_used_only_stops_growth(
    namespaces: Namespaces, filled: Catalogue, database: Database
) -> None:
    await namespaces.set_quota("default", Quota(max_versions=1), "")
    assert (await filled.commit_version(version(2), None)).number == 2
    with pytest.raises(QuotaError, match="2 of 1 versions"):
        await filled.commit_version(version(3), None)
    lives = Lives(database, timedelta(days=1))
    await lives.delete(f"{BOT}/versions/1")
    with pytest.raises(QuotaError):
        await filled.commit_version(version(3), None)
    await lives.purge(f"{BOT}/versions/1")
    await namespaces.set_quota("default", Quota(max_versions=2), "")
    assert (await filled.commit_version(version(3), None)).number == 3


async def test_namespaces_are_listed_by_name(namespaces: Namespaces) -> None:
    for name in ("b", "a", "c"):
        await namespaces.set_quota(name, Quota(), "")
    page = await namespaces.list(2, None)
    rest = await namespaces.list(2, page.next_key)
    assert [one.id for one in (*page.items, *rest.items)] == ["a", "b", "c", "default"]
    assert rest.next_key is None


async def test_what_is_counted_is_what_there_is_after_anything(
    namespaces: Namespaces, filled: Catalogue, database: Database
) -> None:
    lives, dice = Lives(database, timedelta(days=1)), random.Random(7)
    adapters = [BOT]
    for step in range(120):
        parent = dice.choice(adapters)
        name = dice.choice([parent, f"{parent}/versions/{dice.randint(1, 6)}"])
        try:
            match dice.choice(["create", "commit", "commit", "delete", "undelete", "purge"]):
                case "create":
                    adapters.append((await filled.create_adapter(adapter(f"a{step}"), None)).name)
                case "commit":
                    await filled.commit_version(version(dice.randint(1, 9), parent), None)
                case "delete":
                    await lives.delete(name)
                case "undelete":
                    await lives.undelete(name)
                case "purge":
                    await lives.purge(name)
        except GraftError:
            continue

    async def counted(connection: AsyncConnection) -> tuple[int, int, int]:
        of = tables.versions
        query = select(func.coalesce(func.sum(of.c.size_bytes), 0), func.count())
        size, number = (await connection.execute(query.where(of.c.purge_time_us.is_(None)))).one()
        live = select(func.count()).select_from(tables.adapters)
        live = live.where(tables.adapters.c.purge_time_us.is_(None))
        return int(size), int(number), int(await connection.scalar(live) or 0)

    found = await namespaces.get("default")
    assert (found.used_bytes, found.used_versions, found.used_adapters) == (
        await database.snapshot(counted)
    )
