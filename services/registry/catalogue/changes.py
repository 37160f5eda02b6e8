"""Stores changes in the one order that they all have; those that wait at once share a commit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import func, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.common.caller import Caller, current_caller
from services.registry.catalogue import tables
from services.registry.catalogue.change import Change, Ledger
from services.registry.catalogue.failures import DEFECTS, MaybeStoredError, is_dead
from services.registry.pulse import Pulse

T = TypeVar("T")
# Execution option: this transaction is going to write.
WRITE = "graft_write"
# PostgreSQL tells all processes that listen here of each commit.
CHANNEL = "graft_changes"
# Bounds how long the first of a group waits for the last.
_GROUP = 64
_COUNTERS = select(tables.revisions).where(tables.revisions.c.id == 1).with_for_update()
Work = Callable[[Change], Awaitable[T]]


@dataclass(eq=False, slots=True)
class _Waiting:
    work: Work[Any]
    caller: Caller
    answer: asyncio.Future[Any]


@dataclass(slots=True)
class _Outcome:
    result: Any = None
    error: Exception | None = None


class Changes:
    """Runs changes one after another, several in one transaction where several wait.

    Each of a group has a savepoint of its own: one that fails leaves nothing, not even a gap in
    the revisions, and spoils none of the others. All are answered after the commit, also those
    that were refused: what they saw may not have been stored.

    Args:
        engine: the database.
        changed: fired after each stored change.
    """

    def __init__(self, engine: AsyncEngine, changed: Pulse) -> None:
        self._engine, self._changed = engine, changed
        self._waiting: deque[_Waiting] = deque()
        self._running: asyncio.Task[None] | None = None

    async def run(self, work: Work[T]) -> T:
        """Returns what work returned once it is stored; a caller that goes away changes nothing."""
        waiting = _Waiting(work, current_caller(), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._store_waiting())
        answer: T = await asyncio.shield(waiting.answer)
        return answer

    async def close(self) -> None:
        """Waits until all that wait are answered."""
        while self._running is not None and not self._running.done():
            await asyncio.wait([self._running])

    async def _store_waiting(self) -> None:
        while self._waiting:
            group = [self._waiting.popleft() for _ in range(min(_GROUP, len(self._waiting)))]
            try:
                outcomes = await self._store(group)
            except Exception as error:
                outcomes = [_Outcome(error=error) for _ in group]
            except BaseException:
                for waiting in group:
                    waiting.answer.cancel()
                raise
            for waiting, outcome in zip(group, outcomes, strict=True):
                _answer(waiting.answer, outcome)

    async def _store(self, group: Sequence[_Waiting]) -> Sequence[_Outcome]:
        for is_last in (False, True):
            try:
                return await self._try_to_store(group)
            except _NotBegunError as error:
                # Its database was restarted, say. Nothing ran yet, so nothing is done twice.
                if is_last:
                    raise error.cause from None
            except DEFECTS:
                if len(group) == 1:
                    raise
                # One of them noted what cannot be stored: the others are not to suffer.
                return [await self._alone(waiting) for waiting in group]
        raise AssertionError("the last try returns or raises")

    async def _alone(self, waiting: _Waiting) -> _Outcome:
        try:
            (outcome,) = await self._store([waiting])
        except Exception as error:
            return _Outcome(error=error)
        return outcome

    async def _try_to_store(self, group: Sequence[_Waiting]) -> Sequence[_Outcome]:
        committing = False
        try:
            async with self._engine.connect() as plain:
                connection = await plain.execution_options(**{WRITE: True})
                async with connection.begin():
                    ledger = await _lock(connection)
                    outcomes = await _run_all(connection, ledger, group)
                    await self._store_ledger(connection, ledger)
                    committing = True
        except Exception as error:
            if committing and is_dead(error):
                # It may have been stored: who follows looks.
                self._changed.fire()
                raise MaybeStoredError from error
            raise
        if ledger.has_events:
            self._changed.fire()
        return outcomes

    async def _store_ledger(self, connection: AsyncConnection, ledger: Ledger) -> None:
        await ledger.store(connection)
        if not ledger.changed:
            return
        newest = (
            update(tables.revisions).where(tables.revisions.c.id == 1).values(ledger.counters())
        )
        if self._engine.dialect.name == "postgresql":
            # Heard when it is committed, and only then.
            await connection.execute(newest.returning(func.pg_notify(CHANNEL, "")))
        else:
            await connection.execute(newest)


class _NotBegunError(Exception):
    """The connection was dead already when the transaction was to begin."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


async def _lock(connection: AsyncConnection) -> Ledger:
    """The counters. On PostgreSQL the row's lock orders the changes of all processes."""
    try:
        row = (await connection.execute(_COUNTERS)).one()
    except DBAPIError as error:
        if is_dead(error):
            raise _NotBegunError(error) from error
        raise
    return Ledger(row.value, row.audit, row.audit_digest)


async def _run_all(
    connection: AsyncConnection, ledger: Ledger, group: Sequence[_Waiting]
) -> Sequence[_Outcome]:
    outcomes: list[_Outcome] = []
    for waiting in group:
        change = Change(connection, ledger.revision, datetime.now(UTC), waiting.caller)
        if len(group) == 1:
            outcome = _Outcome(await waiting.work(change))
        else:
            outcome = await _run_one(change, waiting.work)
        outcomes.append(outcome)
        if outcome.error is None:
            ledger.take(change)
    return outcomes


async def _run_one(change: Change, work: Work[Any]) -> _Outcome:
    savepoint = await change.connection.begin_nested()
    try:
        result = await work(change)
        await savepoint.commit()
    except Exception as error:
        try:
            await savepoint.rollback()
        except Exception:
            # The whole transaction is gone: all of the group fail with what ended it.
            raise error from None
        if is_dead(error):
            raise
        return _Outcome(error=error)
    return _Outcome(result)


def _answer(answer: asyncio.Future[Any], outcome: _Outcome) -> None:
    if answer.done():
        return
    if outcome.error is None:
        answer.set_result(outcome.result)
    else:
        answer.set_exception(outcome.error)
