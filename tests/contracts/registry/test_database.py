"""How changes are stored: in one order, sharing commits, each whole or not at all, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from graft.errors import GraftError, Reason
from sqlalchemy import event, insert, select
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from services.common.caller import CALLER, Caller
from services.registry.catalogue import tables
from services.registry.catalogue.base import Catalogue
from services.registry.catalogue.database import Change, Database
from services.registry.domain import Adapter
from tests.support.catalogue import BASE, BOT, NS, adapter, move, version


@contextmanager
def counting(engine: AsyncEngine, *names: str) -> Iterator[dict[str, int]]:
    """How often the engine does what these of SQLAlchemy's events tell of."""
    found = dict.fromkeys(names, 0)

    def counter(name: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            found[name] += 1

        return count

    counters = {name: counter(name) for name in names}
    for name, count in counters.items():
        event.listen(engine.sync_engine, name, count)
    yield found
    for name, count in counters.items():
        event.remove(engine.sync_engine, name, count)


@contextmanager
def failing_commits(engine: AsyncEngine) -> Iterator[None]:
    """Commits fail as on a broken disk."""

    def fail(_: Any) -> None:
        raise OperationalError("COMMIT", None, OSError("disk I/O error"))

    event.listen(engine.sync_engine, "commit", fail)
    yield
    event.remove(engine.sync_engine, "commit", fail)


async def revisions_of(catalogue: Catalogue) -> list[int]:
    """Revisions of all events."""
    return [one.revision for one in await catalogue.events(0, 1000)]


async def results(*calls: Any) -> list[Any]:
    """What calls that run at once return or raise."""
    return list(await asyncio.gather(*calls, return_exceptions=True))


async def test_changes_that_wait_at_once_share_a_commit(
    database: Database, filled: Catalogue
) -> None:
    with counting(database.engine, "commit") as counted:
        made = await results(
            *(filled.create_adapter(adapter(f"a{number}"), None) for number in range(32))
        )
    assert [one.name for one in made] == [f"{NS}/adapters/a{number}" for number in range(32)]
    assert counted["commit"] == 1
    assert await revisions_of(filled) == list(range(1, 37))


async def test_a_lone_change_takes_no_savepoint(database: Database, filled: Catalogue) -> None:
    with counting(database.engine, "savepoint", "commit") as counted:
        await filled.create_adapter(adapter("lone"), None)
    assert counted == {"savepoint": 0, "commit": 1}


async def test_one_that_is_refused_undoes_only_itself(
    database: Database, filled: Catalogue
) -> None:
    async def write_then_refuse(change: Change) -> None:
        stored = await filled.get_adapter(BOT)
        change.record("default", replace(stored, description="never"))
        await change.connection.execute(
            tables.adapters.update()
            .where(tables.adapters.c.name == BOT)
            .values(description="never")
        )
        raise GraftError(Reason.INVALID_REQUEST, "no", next_step="Do not.")

    first, refused, last = await results(
        filled.create_adapter(adapter("first"), None),
        database.change(write_then_refuse),
        filled.create_adapter(adapter("last"), None),
    )
    assert isinstance(first, Adapter)
    assert isinstance(last, Adapter)
    assert isinstance(refused, GraftError)
    assert (await filled.get_adapter(BOT)).description == "answers"
    assert await revisions_of(filled) == list(range(1, 7))


async def insert_twice(change: Change) -> None:
    """Breaks a constraint at once."""
    row = {"namespace": "n", "request_id": "r", "request_hash": "h", "kind": "k", "resource": "{}"}
    for _ in range(2):
        await change.connection.execute(insert(tables.request_keys).values(**row, time_us=0))


async def note_twice(change: Change) -> None:
    """Breaks a constraint only when what was noted is written, for the whole transaction."""
    row = {"namespace": "n", "request_id": "r", "request_hash": "h", "kind": "k", "resource": "{}"}
    change.add(tables.request_keys, [{**row, "time_us": 0}] * 2)


@pytest.mark.parametrize("defect", [insert_twice, note_twice])
async def test_a_defect_of_one_change_fails_only_that_one(
    database: Database, filled: Catalogue, defect: Any
) -> None:
    first, failed, last = await results(
        filled.create_adapter(adapter("first"), None),
        database.change(defect),
        filled.create_adapter(adapter("last"), None),
    )
    assert isinstance(failed, IntegrityError)
    assert [first.name, last.name] == [f"{NS}/adapters/first", f"{NS}/adapters/last"]
    assert await revisions_of(filled) == list(range(1, 7))


async def test_when_the_commit_fails_all_are_told_and_nothing_is_stored(
    database: Database, filled: Catalogue
) -> None:
    before = await revisions_of(filled)
    with failing_commits(database.engine):
        told = await results(
            filled.move_alias(move(1, expected=0)),
            # What this one saw, the other's move, was never stored.
            filled.move_alias(move(2, expected=0)),
            filled.create_adapter(adapter("c"), None),
        )
    assert [one.reason for one in told] == [Reason.UNAVAILABLE] * 3
    assert all("nothing was changed" in one.message for one in told)
    assert await revisions_of(filled) == before
    assert (await filled.move_alias(move(2, expected=0))).version == 2


async def test_a_caller_that_goes_away_breaks_nothing_for_the_others(filled: Catalogue) -> None:
    calls = [
        asyncio.create_task(filled.create_adapter(adapter(f"a{number}"), None))
        for number in range(6)
    ]
    await asyncio.sleep(0)
    for gone in calls[1::2]:
        gone.cancel()
    made = await results(*calls)
    assert [one.name for one in made[::2]] == [f"{NS}/adapters/a{number}" for number in (0, 2, 4)]
    assert await revisions_of(filled) == list(range(1, 11))


async def test_each_change_is_audited_as_the_call_that_asked_for_it(
    database: Database, filled: Catalogue
) -> None:
    async def create(name: str) -> None:
        CALLER.set(Caller(name, "CreateAdapter", f"request-{name}"))
        await filled.create_adapter(adapter(name), None)

    await asyncio.gather(*(create(name) for name in ("ann", "bob", "cleo")))
    entry = tables.audit_entries.c
    query = select(entry.actor, entry.resource, entry.request_id).order_by(entry.number.desc())

    async def read(connection: Any) -> list[tuple[str, ...]]:
        return [tuple(row) for row in (await connection.execute(query.limit(3))).all()]

    assert await database.read(read) == [
        (name, f"{NS}/adapters/{name}", f"request-{name}") for name in ("cleo", "bob", "ann")
    ]


async def test_who_expects_the_same_at_once_has_one_winner_every_time(filled: Catalogue) -> None:
    for number in range(3, 10):
        await filled.commit_version(version(number), None)
    now = (await filled.move_alias(move(1))).version
    for _ in range(10):
        told = await results(
            *(filled.move_alias(move(to, expected=now)) for to in range(1, 10) if to != now)
        )
        (won,) = (one for one in told if not isinstance(one, GraftError))
        now = won.version
    assert await filled.get_base(BASE.name)
