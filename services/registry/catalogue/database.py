"""Transactions of the catalogue: the one order of all changes, and what wakes who follows them.

A transaction runs to its end even when its caller goes away in the middle of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

from graft.errors import GraftError, Reason
from sqlalchemy import insert, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.registry.catalogue import tables
from services.registry.catalogue.rows import dump, kind_of, to_us
from services.registry.domain import Resource
from services.registry.pulse import Pulse

T = TypeVar("T")
# Execution options that say how a transaction begins, where the engine must be told.
WRITE = "graft_write"
SNAPSHOT = "graft_snapshot"


class Change:
    """A transaction that may change something.

    connection runs its statements; now is the time of everything in it.
    """

    def __init__(self, connection: AsyncConnection, revision: int, now: datetime) -> None:
        self.connection, self.now = connection, now
        self._revision = revision
        self.recorded = False

    @property
    def next_revision(self) -> int:
        """The revision that record() gives next."""
        return self._revision + 1

    async def record(self, namespace: str, resource: Resource) -> None:
        """Stores the event of a change to a resource."""
        self._revision += 1
        self.recorded = True
        await self.connection.execute(
            update(tables.revisions).where(tables.revisions.c.id == 1).values(value=self._revision)
        )
        await self.connection.execute(
            insert(tables.events).values(
                revision=self._revision,
                namespace=namespace,
                kind=kind_of(resource),
                resource=dump(resource, type(resource)),
                time_us=to_us(self.now),
            )
        )


class Database:
    """Runs the catalogue's transactions on an engine.

    Args:
        engine: an engine whose schema is up to date.
        changed: fired after each stored change.
    """

    def __init__(self, engine: AsyncEngine, changed: Pulse) -> None:
        self._engine, self._changed = engine, changed
        self._writing = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Runs one statement, which sees one state of the catalogue by itself."""
        return await self._whole(self._read(work, {}))

    async def snapshot(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Runs statements that all see one state of the catalogue."""
        return await self._whole(self._read(work, {SNAPSHOT: True}))

    async def _read(
        self, work: Callable[[AsyncConnection], Awaitable[T]], options: dict[str, bool]
    ) -> T:
        async with self._engine.connect() as plain:
            connection = await plain.execution_options(**options)
            async with connection.begin():
                return await work(connection)

    async def change(self, work: Callable[[Change], Awaitable[T]]) -> T:
        """Runs work in a transaction that is stored as a whole before this returns, or not at all."""
        return await self._whole(self._change(work))

    async def _change(self, work: Callable[[Change], Awaitable[T]]) -> T:
        async with self._writing, self._engine.connect() as plain:
            connection = await plain.execution_options(**{WRITE: True})
            async with connection.begin():
                # On PostgreSQL this row's lock orders the changes of all processes.
                revision = await connection.scalar(
                    select(tables.revisions.c.value)
                    .where(tables.revisions.c.id == 1)
                    .with_for_update()
                )
                assert revision is not None, "migration 0001 puts the row there"
                change = Change(connection, revision, datetime.now(UTC))
                result = await work(change)
        if change.recorded:
            self._changed.fire()
        return result

    async def _whole(self, transaction: Coroutine[Any, Any, T]) -> T:
        # Also when the caller goes away: a connection that is left in the middle of a statement
        # has to be thrown away, and of a change nobody could say whether it was stored.
        task = asyncio.create_task(transaction)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(task)
        except OperationalError as error:
            raise _as_graft_error(error) from error

    async def close(self) -> None:
        """Waits for running transactions and closes all connections."""
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._engine.dispose()


def _as_graft_error(error: OperationalError) -> GraftError:
    said = str(error.orig)
    if "full" in said:
        return GraftError(
            Reason.STORAGE_FULL,
            f"The registry's database cannot grow ({said}); nothing was changed",
            next_step="Free space where the database lies, then try again.",
        )
    return GraftError(
        Reason.UNAVAILABLE,
        f"The registry's database failed ({said}); nothing was changed",
        next_step="Try again; if it stays so, look at the registry's log and its disk.",
    )
