"""Delete, undelete and purge of adapters, bases and versions, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from graft.errors import GraftError, Reason
from sqlalchemy import func, insert, select

from services.registry.catalogue import tables
from services.registry.catalogue.base import Catalogue
from services.registry.catalogue.database import Database
from services.registry.catalogue.lives import Lives
from services.registry.catalogue.rows import dump, to_us
from services.registry.domain import Action, AliasPolicy, Canary
from tests.support.catalogue import BASE, BOT, NS, PRODUCTION, adapter, move, version

WINDOW = timedelta(days=30)
FIRST, SECOND = f"{BOT}/versions/1", f"{BOT}/versions/2"


@pytest.fixture
def lives(database: Database, filled: Catalogue) -> Lives:
    """Of a catalogue with a base, the adapter bot and two versions."""
    return Lives(database, WINDOW)


async def refused(call: Any, reason: Reason, match: str = ".") -> GraftError:
    with pytest.raises(GraftError, match=match) as raised:
        await call
    assert raised.value.reason is reason
    assert raised.value.next_step
    return raised.value


async def count(database: Database, table: Any) -> int:
    async def read(connection: Any) -> int:
        return int(await connection.scalar(select(func.count()).select_from(table)))

    return await database.read(read)


@pytest.mark.parametrize("name", [BOT, FIRST])
async def test_what_is_deleted_says_until_when_and_comes_back_as_it_was(
    lives: Lives, filled: Catalogue, name: str
) -> None:
    before = await lives.undelete(name)
    gone = await lives.delete(name)
    assert gone.life.delete_time is not None
    assert gone.life.expire_time == gone.life.delete_time + WINDOW
    assert await lives.delete(name) == gone, "a repeated delete answers the same"
    assert await lives.undelete(name) == before


async def test_each_end_is_an_event_with_its_action(lives: Lives, filled: Catalogue) -> None:
    after = await filled.revision()
    await lives.delete(BOT, reason="old")
    await lives.undelete(BOT)
    await lives.delete(FIRST)
    await lives.purge(FIRST)
    actions = [one.action for one in await filled.events(after, 100)]
    assert actions == [Action.DELETED, Action.UNDELETED, Action.DELETED, Action.PURGED]


async def test_the_reason_is_in_the_audit_log(lives: Lives, database: Database) -> None:
    await lives.delete(BOT, reason="superseded by bot2")

    async def last(connection: Any) -> str:
        query = select(tables.audit_entries.c.detail).order_by(tables.audit_entries.c.number.desc())
        return str(await connection.scalar(query.limit(1)))

    assert "superseded by bot2" in await database.read(last)


async def test_an_etag_that_is_not_the_stored_one_deletes_nothing(
    lives: Lives, filled: Catalogue
) -> None:
    await refused(lives.delete(BOT, etag="other"), Reason.ETAG_MISMATCH, "changed since")
    assert not (await filled.get_adapter(BOT)).life.deleted
    await lives.delete(BOT, etag=(await filled.get_adapter(BOT)).life.etag)


async def test_a_version_that_an_alias_names_is_in_use(lives: Lives, filled: Catalogue) -> None:
    await filled.move_alias(move(1))
    error = await refused(lives.delete(FIRST), Reason.IN_USE, "production")
    assert error.metadata["alias"] == PRODUCTION
    await filled.move_alias(move(2))
    await lives.delete(FIRST)
    await refused(filled.move_alias(move(1)), Reason.DELETED, "versions/1")
    await refused(filled.move_alias(move(None)), Reason.DELETED, "versions/1")


async def test_a_version_that_a_canary_names_is_in_use(
    lives: Lives, filled: Catalogue, database: Database
) -> None:
    await filled.move_alias(move(2))
    canaries = dump((Canary(1, "sha256:1", 5.0),), tuple[Canary, ...])
    await database.change(
        lambda change: change.connection.execute(tables.aliases.update().values(canaries=canaries))
    )
    await refused(lives.delete(FIRST), Reason.IN_USE, "production")


async def test_a_deleted_adapter_hides_its_versions_from_use(
    lives: Lives, filled: Catalogue
) -> None:
    await filled.move_alias(move(1))
    await lives.delete(BOT)
    assert (await filled.get_adapter(BOT)).life.deleted, "by its name it is still told of"
    assert (await filled.list_aliases("default", None))[0] == []
    for call in (
        filled.get_version_by_alias(PRODUCTION),
        filled.move_alias(move(2)),
        filled.commit_version(version(3), None),
        filled.commit_version(version(2), None),
        lives.delete(FIRST),
    ):
        await refused(call, Reason.DELETED, "bot was deleted")
    await lives.undelete(BOT)
    assert (await filled.get_version_by_alias(PRODUCTION)).number == 1
    assert len((await filled.list_aliases("default", None))[0]) == 1


async def test_an_adapter_with_a_protected_alias_is_not_deleted(
    lives: Lives, filled: Catalogue, database: Database
) -> None:
    alias = await filled.move_alias(move(1))
    policy = AliasPolicy(PRODUCTION, BOT, True, ("ann",), (), "e", "ann", alias.update_time)
    row = {
        "name": PRODUCTION,
        "namespace": "default",
        "parent": BOT,
        "policy": dump(policy, AliasPolicy),
    }
    await database.change(
        lambda change: change.connection.execute(insert(tables.alias_policies).values(row))
    )
    await refused(lives.delete(BOT), Reason.PROTECTED, "production is protected")


async def test_a_base_goes_after_its_adapters_and_comes_back_before_them(
    lives: Lives, filled: Catalogue
) -> None:
    await refused(lives.delete(BASE.name), Reason.IN_USE, "adapters/bot")
    await lives.delete(BOT)
    await lives.delete(BASE.name)
    await refused(lives.purge(BASE.name), Reason.IN_USE, "adapters/bot")
    await refused(lives.undelete(BOT), Reason.DELETED, "bases/tiny")
    await refused(filled.create_adapter(adapter("second"), None), Reason.DELETED, "bases/tiny")
    await lives.undelete(BASE.name)
    await lives.undelete(BOT)


async def test_only_what_is_deleted_is_purged_and_what_is_purged_stays_so(
    lives: Lives, filled: Catalogue, database: Database
) -> None:
    await refused(lives.purge(FIRST), Reason.NOT_DELETED)
    await lives.delete(FIRST)
    gone = await lives.purge(FIRST)
    assert gone.life.purge_time is not None
    assert await lives.purge(FIRST) == gone
    await refused(lives.undelete(FIRST), Reason.DELETED, "was purged")
    await refused(lives.delete(FIRST), Reason.DELETED, "was purged")
    kept = await filled.get_version(BOT, 1)
    assert kept.manifest == version(1).manifest, "its record stays"
    assert await count(database, tables.version_files) == 1
    await refused(filled.commit_version(version(1), None), Reason.DELETED, "was purged")
    assert (await filled.commit_version(version(3), None)).number == 3


async def test_a_purged_adapter_ends_with_all_its_versions_and_keeps_its_name(
    lives: Lives, filled: Catalogue, database: Database
) -> None:
    await filled.move_alias(move(1))
    await lives.delete(BOT)
    error = await refused(filled.create_adapter(adapter(), None), Reason.ALREADY_EXISTS)
    assert "undelete" in error.next_step
    await lives.purge(BOT)
    assert (await filled.get_version(BOT, 2)).life.purge_time is not None
    assert await count(database, tables.version_files) == 0
    error = await refused(filled.create_adapter(adapter(), None), Reason.ALREADY_EXISTS)
    assert "never given" in error.next_step
    await refused(lives.undelete(BOT), Reason.DELETED, "was purged")
    await lives.delete(BASE.name)
    await lives.purge(BASE.name)
    error = await refused(filled.create_base(BASE), Reason.ALREADY_EXISTS)
    assert "purged" in error.next_step


async def test_what_is_absent_is_named(lives: Lives) -> None:
    calls: list[Callable[[str], Any]] = [lives.delete, lives.undelete, lives.purge]
    for call in calls:
        await refused(call(f"{NS}/adapters/none"), Reason.ADAPTER_NOT_FOUND, "adapters/none")
        await refused(call(f"{BOT}/versions/9"), Reason.VERSION_NOT_FOUND, "versions/9")
        await refused(call(f"{NS}/bases/none"), Reason.BASE_NOT_FOUND, "bases/none")


async def test_undelete_works_after_the_window_until_somebody_purges(
    database: Database, filled: Catalogue
) -> None:
    brief = Lives(database, timedelta(0))
    gone = await brief.delete(FIRST)
    assert gone.life.expire_time is not None
    assert to_us(gone.life.expire_time) == to_us(gone.life.delete_time or gone.life.expire_time)
    assert not (await brief.undelete(FIRST)).life.deleted


async def test_a_version_is_gone_for_good_while_its_adapter_is_deleted_too(
    lives: Lives, filled: Catalogue
) -> None:
    await lives.delete(FIRST)
    await lives.delete(BOT)
    await refused(lives.undelete(FIRST), Reason.DELETED, "bot was deleted")
    await lives.purge(FIRST)
    back = await lives.undelete(BOT)
    assert back == replace(back, life=replace(back.life, delete_time=None, expire_time=None))
    assert (await filled.get_version(BOT, 1)).life.purge_time is not None
    assert (await filled.get_version(BOT, 2)).life.purge_time is None
