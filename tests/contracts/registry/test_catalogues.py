"""What every catalogue does, run against each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from graft.errors import GraftError, Reason
from sqlalchemy import event, text

from services.registry.catalogue import tables
from services.registry.catalogue.base import Catalogue, EventFilter, RequestKey
from services.registry.catalogue.database import Database
from services.registry.catalogue.sql import SqlCatalogue
from services.registry.catalogue.sqlite import open_sqlite
from services.registry.domain import Adapter, Alias, Base, Version
from services.registry.pulse import Pulse
from tests.support.catalogue import BASE, BOT, NS, PRODUCTION, adapter, move, version


class TestCatalogue:
    """On both databases."""

    async def test_what_was_created_is_got(self, filled: Catalogue) -> None:
        bot = await filled.get_adapter(BOT)
        assert (bot.base, bot.description, bot.labels) == (BASE.name, "answers", {"team": "a"})
        assert bot.latest_version == 2
        base = await filled.get_base(BASE.name)
        assert (base.fingerprint, base.modules) == (BASE.fingerprint, BASE.modules)
        first = await filled.get_version(BOT, 1)
        assert (first.manifest, first.report) == (version(1).manifest, version(1).report)
        assert await filled.counts() == {"adapters": 1, "bases": 1, "versions": 2}

    async def test_what_is_absent_is_named(self, filled: Catalogue) -> None:
        absent = {
            Reason.ADAPTER_NOT_FOUND: filled.get_adapter(f"{NS}/adapters/none"),
            Reason.BASE_NOT_FOUND: filled.get_base(f"{NS}/bases/none"),
            Reason.VERSION_NOT_FOUND: filled.get_version(BOT, 3),
            Reason.ALIAS_NOT_FOUND: filled.get_version_by_alias(PRODUCTION),
        }
        for reason, call in absent.items():
            with pytest.raises(GraftError, match=NS) as raised:
                await call
            assert raised.value.reason is reason

    async def test_an_adapter_needs_a_recorded_base(self, catalogue: Catalogue) -> None:
        with pytest.raises(GraftError, match="bases/tiny") as raised:
            await catalogue.create_adapter(adapter(), None)
        assert raised.value.reason is Reason.BASE_NOT_FOUND

    async def test_a_name_is_given_once(self, filled: Catalogue) -> None:
        with pytest.raises(GraftError, match="exists already") as raised:
            await filled.create_adapter(adapter(), None)
        assert raised.value.reason is Reason.ALREADY_EXISTS

    async def test_a_repeated_request_answers_what_the_first_did(self, filled: Catalogue) -> None:
        key = RequestKey("r1", "hash")
        first = await filled.create_adapter(adapter("second"), key)
        assert await filled.create_adapter(adapter("second"), key) == first
        with pytest.raises(GraftError, match="'r1'") as raised:
            await filled.create_adapter(adapter("third"), RequestKey("r1", "another hash"))
        assert raised.value.reason is Reason.REQUEST_ID_REUSED

    async def test_a_base_again_is_the_stored_one_and_another_is_refused(
        self, filled: Catalogue
    ) -> None:
        revision = await filled.revision()
        assert await filled.create_base(BASE) == await filled.get_base(BASE.name)
        assert await filled.revision() == revision
        other = replace(BASE.fingerprint, digest="sha256:other")
        with pytest.raises(GraftError, match="exists already") as raised:
            await filled.create_base(replace(BASE, fingerprint=other))
        assert raised.value.reason is Reason.ALREADY_EXISTS

    async def test_the_same_manifest_is_one_version(self, filled: Catalogue) -> None:
        again = await filled.commit_version(version(2), RequestKey("r", "h"))
        assert again.number == 2
        assert await filled.find_committed(BOT, RequestKey("r", "h")) == again
        assert (await filled.get_adapter(BOT)).latest_version == 2

    async def test_concurrent_commits_get_numbers_without_gaps(self, filled: Catalogue) -> None:
        made = await asyncio.gather(
            *(filled.commit_version(version(number), None) for number in range(3, 23))
        )
        assert sorted(one.number for one in made) == list(range(3, 23))

    async def test_an_alias_is_moved_from_where_it_is_expected(self, filled: Catalogue) -> None:
        first = await filled.move_alias(move(1, expected=0))
        assert (first.version, first.previous_version) == (1, 0)
        second = await filled.move_alias(move(2, expected=1))
        assert (second.version, second.previous_version) == (2, 1)
        assert (second.actor, second.reason) == ("ann", "better answers")
        assert (await filled.get_version_by_alias(PRODUCTION)).number == 2

    @pytest.mark.parametrize("expected", [0, 2])
    async def test_an_alias_elsewhere_is_not_moved_and_both_are_named(
        self, filled: Catalogue, expected: int
    ) -> None:
        await filled.move_alias(move(1))
        with pytest.raises(GraftError) as raised:
            await filled.move_alias(move(2, expected=expected))
        assert raised.value.reason is Reason.ALIAS_MOVED
        assert raised.value.metadata["version"] == f"{BOT}/versions/1"
        assert f"{BOT}/versions/1" in raised.value.message
        if expected:
            assert f"{BOT}/versions/2" in raised.value.message
        assert (await filled.get_alias(PRODUCTION)).version == 1

    async def test_an_etag_is_good_until_the_next_move(self, filled: Catalogue) -> None:
        first = await filled.move_alias(move(1))
        second = await filled.move_alias(move(2, etag=first.etag))
        with pytest.raises(GraftError) as raised:
            await filled.move_alias(move(1, etag=first.etag))
        assert raised.value.reason is Reason.ALIAS_MOVED
        assert raised.value.metadata["etag"] == second.etag

    async def test_an_alias_cannot_name_a_version_that_does_not_exist(
        self, filled: Catalogue
    ) -> None:
        with pytest.raises(GraftError, match="versions/9") as raised:
            await filled.move_alias(move(9))
        assert raised.value.reason is Reason.VERSION_NOT_FOUND

    async def test_rollback_goes_to_the_version_before(self, filled: Catalogue) -> None:
        await filled.move_alias(move(1))
        with pytest.raises(GraftError) as raised:
            await filled.move_alias(move(None))
        assert raised.value.reason is Reason.NO_PREVIOUS_VERSION
        await filled.move_alias(move(2))
        back = await filled.move_alias(move(None))
        assert (back.version, back.previous_version) == (1, 2)

    async def test_every_move_is_in_the_history_newest_first(self, filled: Catalogue) -> None:
        for to in (1, 2, None):
            await filled.move_alias(move(to))
        page = await filled.list_alias_history(PRODUCTION, 2, None)
        assert [one.version for one in page.items] == [1, 2]
        rest = await filled.list_alias_history(PRODUCTION, 2, page.next_key)
        assert ([one.version for one in rest.items], rest.next_key) == ([1], None)

    async def test_a_move_to_where_it_is_changes_nothing(self, filled: Catalogue) -> None:
        first = await filled.move_alias(move(1))
        assert await filled.move_alias(move(1)) == first
        assert await filled.revision() == first.revision

    async def test_of_many_who_expect_the_same_exactly_one_wins(self, filled: Catalogue) -> None:
        for number in range(3, 35):
            await filled.commit_version(version(number), None)
        await filled.move_alias(move(1))
        results = await asyncio.gather(
            *(filled.move_alias(move(number, expected=1)) for number in range(3, 35)),
            return_exceptions=True,
        )
        won = [one for one in results if isinstance(one, Alias)]
        lost = [one for one in results if isinstance(one, GraftError)]
        assert (len(won), len(lost)) == (1, 31)
        assert {one.reason for one in lost} == {Reason.ALIAS_MOVED}
        assert await filled.get_alias(PRODUCTION) == won[0]

    async def test_aliases_are_listed_with_the_revision_to_watch_from(
        self, filled: Catalogue
    ) -> None:
        alias = await filled.move_alias(move(1))
        assert await filled.list_aliases("default", None) == ([alias], alias.revision)
        assert await filled.list_aliases("default", BOT) == ([alias], alias.revision)
        assert await filled.list_aliases("other", None) == ([], alias.revision)

    async def test_every_change_is_one_event_in_order_without_gaps(self, filled: Catalogue) -> None:
        await filled.move_alias(move(1))
        events = await filled.events(0, 100, None)
        assert [one.revision for one in events] == [1, 2, 3, 4, 5]
        kinds = [type(one.resource) for one in events]
        assert kinds == [Base, Adapter, Version, Version, Alias]
        assert events[2].resource == await filled.get_version(BOT, 1)
        assert await filled.events(3, 1, None) == [events[3]]
        assert await filled.events(0, 100, EventFilter("other")) == []

    async def test_what_failed_left_no_event(self, filled: Catalogue) -> None:
        before = await filled.revision()
        for call in (filled.move_alias(move(9)), filled.create_adapter(adapter(), None)):
            with pytest.raises(GraftError):
                await call
        assert await filled.revision() == before
        await filled.move_alias(move(1))
        assert await filled.revision() == before + 1

    async def test_a_change_ends_though_its_caller_goes_away(self, filled: Catalogue) -> None:
        task = asyncio.create_task(filled.move_alias(move(1)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await filled.move_alias(move(2))
        history = await filled.list_alias_history(PRODUCTION, 10, None)
        assert [one.version for one in history.items] in ([2, 1], [2])
        events = await filled.events(0, 100, None)
        assert [one.revision for one in events] == list(range(1, len(events) + 1))

    async def test_callers_who_go_away_leave_the_catalogue_usable(self, filled: Catalogue) -> None:
        calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
            lambda: filled.move_alias(move(1)),
            lambda: filled.list_aliases("default", None),
            lambda: filled.get_adapter(BOT),
            lambda: filled.move_alias(move(2)),
        ]

        async def leave_after(turns: int) -> None:
            task = asyncio.create_task(calls[turns % 4]())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        await asyncio.gather(*(leave_after(turns) for turns in range(40)))
        await filled.move_alias(move(1))
        _, revision = await filled.list_aliases("default", None)
        events = await filled.events(0, 1000, None)
        assert [one.revision for one in events] == list(range(1, revision + 1))


class TestSqlite:
    """The embedded catalogue."""

    async def test_it_is_there_again_after_closing(self, tmp_path: Path) -> None:
        first = SqlCatalogue(Database(await open_sqlite(tmp_path / "r.db"), Pulse()))
        base = await first.create_base(BASE)
        await first.close()
        second = SqlCatalogue(Database(await open_sqlite(tmp_path / "r.db"), Pulse()))
        assert await second.get_base(BASE.name) == base
        assert await second.revision() == 1
        await second.close()

    async def test_the_migrations_make_the_tables_that_the_code_uses(self, tmp_path: Path) -> None:
        engine = await open_sqlite(tmp_path / "r.db")
        async with engine.connect() as connection:
            difference = await connection.run_sync(
                lambda sync: compare_metadata(MigrationContext.configure(sync), tables.metadata)
            )
        await engine.dispose()
        assert difference == []

    async def test_each_commit_is_durable_before_it_is_answered(self, tmp_path: Path) -> None:
        engine = await open_sqlite(tmp_path / "r.db")
        found = {}
        async with engine.connect() as connection:
            for pragma in ("journal_mode", "synchronous", "foreign_keys"):
                found[pragma] = await connection.scalar(text(f"PRAGMA {pragma}"))
        await engine.dispose()
        full = 2
        assert found == {"journal_mode": "wal", "synchronous": full, "foreign_keys": 1}

    async def test_a_full_disk_refuses_the_change_and_keeps_what_there_is(
        self, tmp_path: Path
    ) -> None:
        engine = await open_sqlite(tmp_path / "r.db")
        catalogue = SqlCatalogue(Database(engine, Pulse()))
        await catalogue.create_base(BASE)

        def limit(connection: Any, _record: Any, _proxy: Any) -> None:
            cursor = connection.cursor()
            cursor.execute("PRAGMA max_page_count=1")
            cursor.close()

        event.listen(engine.sync_engine, "checkout", limit)
        large = replace(BASE, name=f"{NS}/bases/large", config_json="x" * 100_000)
        with pytest.raises(GraftError, match="nothing was changed") as raised:
            await catalogue.create_base(large)
        assert raised.value.reason is Reason.STORAGE_FULL
        assert await catalogue.revision() == 1
        assert (await catalogue.get_base(BASE.name)).source == BASE.source
        await catalogue.close()
