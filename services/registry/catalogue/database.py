"""Transactions of the catalogue: the one order of all changes, and what wakes who follows them.

A change runs to its end even when its caller goes away in the middle of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TypeVar

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.registry.catalogue import tables
from services.registry.catalogue.rows import dump, kind_of, to_us
from services.registry.domain import Resource
from services.registry.pulse import Pulse

T = TypeVar("T")
WRITE = "graft_write"


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
        self._running: set[asyncio.Task[object]] = set()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one state of the catalogue."""
        async with self._engine.connect() as connection, connection.begin():
            yield connection

    async def change(self, work: Callable[[Change], Awaitable[T]]) -> T:
        """Runs work in a transaction that is stored as a whole before this returns, or not at all."""
        task = asyncio.create_task(self._change(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

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

    async def close(self) -> None:
        """Waits for running changes and closes all connections."""
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._engine.dispose()
