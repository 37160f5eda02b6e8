"""What only a database that several processes share, and that can go away, has to stand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from graft.errors import GraftError, Reason, UnavailableError
from pydantic import SecretStr
from sqlalchemy import event, text

from services.registry.catalogue import tables
from services.registry.catalogue.database import Database
from services.registry.catalogue.listen import Listener
from services.registry.catalogue.postgres import open_postgres
from services.registry.catalogue.sql import SqlCatalogue
from services.registry.config import RegistrySettings
from services.registry.pulse import Pulse
from tests.support.catalogue import BOT, adapter, fill, move
from tests.support.postgres import PostgresServer

DEADLINE_S = 60


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    """An empty database."""
    return postgres.create_database(schema=False)


@pytest.fixture
async def both(url: str) -> AsyncIterator[list[SqlCatalogue]]:
    """Two catalogues on one database, as two processes have them, with what fill() puts there."""
    databases = [Database(await open_postgres(url), Pulse()) for _ in range(2)]
    catalogues = [SqlCatalogue(database) for database in databases]
    await fill(databases[0], catalogues[0])
    yield catalogues
    for catalogue in catalogues:
        await catalogue.close()


@pytest.fixture
def interrupt(request: pytest.FixtureRequest, postgres: PostgresServer) -> Callable[[], object]:
    """Cuts all connections, restarts the server, or crashes and restarts it."""
    ways: dict[str, Callable[[], object]] = {
        "cut": postgres.cut_connections,
        "restart": postgres.restart,
        "crash": lambda: postgres.restart(crash=True),
    }
    return ways[request.param]


async def test_registries_that_start_at_once_make_the_tables_once(url: str) -> None:
    engines = await asyncio.gather(*(open_postgres(url) for _ in range(4)))
    async with engines[0].connect() as connection:
        difference = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), tables.metadata)
        )
    for engine in engines:
        await engine.dispose()
    assert difference == []


async def test_a_schema_of_a_newer_graft_is_left_alone(url: str, postgres: PostgresServer) -> None:
    await (await open_postgres(url)).dispose()
    postgres.execute("UPDATE alembic_version SET version_num = '9999'", url.rpartition("/")[2])
    with pytest.raises(UnavailableError, match="schema 9999"):
        await open_postgres(url)


async def test_a_database_that_is_not_there_is_named_without_its_password(url: str) -> None:
    wrong = url.replace("graft@", "graft:secret@") + "-none"
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:\d+/test_\d+-none") as raised:
        await open_postgres(wrong)
    settings = RegistrySettings(database=SecretStr(wrong))
    assert settings.postgres_url == wrong
    assert "secret" not in f"{raised.value} {raised.value.metadata} {settings!r} {settings}"


async def test_changes_of_two_processes_are_one_order_without_gaps(
    both: list[SqlCatalogue],
) -> None:
    await asyncio.gather(
        *(both[n % 2].create_adapter(adapter(f"a{n}"), None) for n in range(60)),
    )
    for catalogue in both:
        events = await catalogue.events(0, 1000)
        assert [one.revision for one in events] == list(range(1, 65))


async def test_of_two_processes_that_move_an_alias_at_once_one_wins(
    both: list[SqlCatalogue],
) -> None:
    now = (await both[0].move_alias(move(1))).version
    for _ in range(20):
        to = 3 - now
        told = await asyncio.gather(
            *(catalogue.move_alias(move(to, expected=now)) for catalogue in both),
            return_exceptions=True,
        )
        (lost,) = (one for one in told if isinstance(one, GraftError))
        assert lost.reason is Reason.ALIAS_MOVED
        now = to


@pytest.mark.parametrize("interrupt", ["cut", "restart", "crash"], indirect=True)
async def test_the_next_calls_after_an_interruption_just_work(
    both: list[SqlCatalogue], interrupt: Callable[[], object]
) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: both[0].get_adapter(BOT),
        lambda: both[0].list_aliases("default", None),
        lambda: both[0].create_adapter(adapter("after"), None),
    ]
    for call in calls:
        # So that there are warm connections to be broken.
        await asyncio.gather(*(both[0].get_adapter(BOT) for _ in range(5)))
        await asyncio.to_thread(interrupt)
        await call()
    assert [one.revision for one in await both[1].events(0, 100)] == [1, 2, 3, 4, 5]


async def test_while_the_database_is_away_calls_say_so_and_change_nothing(
    both: list[SqlCatalogue], postgres: PostgresServer
) -> None:
    await asyncio.to_thread(postgres.stop)
    try:
        for call in (both[0].get_adapter(BOT), both[0].move_alias(move(1))):
            with pytest.raises(UnavailableError, match="nothing was changed"):
                await call
    finally:
        await asyncio.to_thread(postgres.start)
    assert (await both[0].move_alias(move(1, expected=0))).version == 1


async def test_a_connection_lost_in_a_change_undoes_it(
    both: list[SqlCatalogue], postgres: PostgresServer, url: str
) -> None:
    database = Database(await open_postgres(url), Pulse())

    async def lose(change: Any) -> None:
        await change.connection.execute(text("DELETE FROM alias_moves"))
        await asyncio.to_thread(postgres.cut_connections)
        await change.connection.execute(text("DELETE FROM aliases"))

    await both[0].move_alias(move(1))
    with pytest.raises(UnavailableError, match="nothing was changed"):
        await database.change(lose)
    assert len((await both[0].list_alias_history(move(1).name, 10, None)).items) == 1
    await database.close()


async def test_a_connection_lost_in_the_commit_is_not_said_to_have_changed_nothing(
    both: list[SqlCatalogue], postgres: PostgresServer, url: str
) -> None:
    engine = await open_postgres(url)
    catalogue = SqlCatalogue(Database(engine, Pulse()))
    event.listen(engine.sync_engine, "commit", lambda _: postgres.cut_connections(), once=True)
    with pytest.raises(UnavailableError, match="it is stored, or nothing of it is") as raised:
        await catalogue.move_alias(move(1, expected=0))
    assert "request_id" in raised.value.next_step
    assert (await catalogue.move_alias(move(1, expected=0))).version == 1
    await catalogue.close()


@pytest.mark.parametrize("interrupt", ["cut", "restart", "crash"], indirect=True)
async def test_a_change_of_another_process_is_heard_also_after_an_interruption(
    both: list[SqlCatalogue], url: str, interrupt: Callable[[], object]
) -> None:
    pulse = Pulse()
    listener = Listener(url, pulse)
    await listener.start()
    try:
        async with asyncio.timeout(DEADLINE_S):
            # Fires when it begins to listen.
            await pulse.next().wait()
            for name in ("a", "b"):
                heard = pulse.next()
                await both[1].create_adapter(adapter(name), None)
                await heard.wait()
                again = pulse.next()
                await asyncio.to_thread(interrupt)
                await again.wait()
    finally:
        await listener.close()
