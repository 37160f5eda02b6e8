"""Transactions of the catalogue, on SQLite and on PostgreSQL.

A transaction runs to its end even when its caller goes away in the middle of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.registry.catalogue.change import Change as Change
from services.registry.catalogue.changes import WRITE as WRITE
from services.registry.catalogue.changes import Changes
from services.registry.catalogue.failures import FAILURES, MaybeStoredError, as_graft_error, is_dead
from services.registry.pulse import Pulse

T = TypeVar("T")
Read = Callable[[AsyncConnection], Awaitable[T]]
# Execution option of SQLite's: this transaction sees one state from its first statement on.
SNAPSHOT = "graft_snapshot"
_STATEMENT: Mapping[str, Mapping[str, Any]] = {
    "sqlite": {},
    # Saves the two round trips of a transaction that holds one statement.
    "postgresql": {"isolation_level": "AUTOCOMMIT"},
}
_SNAPSHOT: Mapping[str, Mapping[str, Any]] = {
    "sqlite": {SNAPSHOT: True},
    "postgresql": {"isolation_level": "REPEATABLE READ"},
}


class Database:
    """Runs the catalogue's transactions on an engine.

    Its methods raise GraftError: UNAVAILABLE or OVERLOADED when the database cannot be used now,
    STORAGE_FULL; a change that failed so left nothing, unless the message says otherwise.

    Attributes:
        engine: an engine whose schema is up to date.

    Args:
        engine: see above.
        changed: fired after each stored change.
    """

    def __init__(self, engine: AsyncEngine, changed: Pulse) -> None:
        self.engine = engine
        self._changes = Changes(engine, changed)
        self._running: set[asyncio.Task[Any]] = set()

    async def read(self, work: Read[T]) -> T:
        """Runs one statement, which sees one state of the catalogue by itself."""
        return await self._whole(self._read(work, _STATEMENT[self.engine.dialect.name]))

    async def snapshot(self, work: Read[T]) -> T:
        """Runs statements that all see one state of the catalogue."""
        return await self._whole(self._read(work, _SNAPSHOT[self.engine.dialect.name]))

    async def change(self, work: Callable[[Change], Awaitable[T]]) -> T:
        """Runs work in a transaction that is stored as a whole before this returns, or not at all.

        work runs beside no other change of any process, and sees all that came before. It must
        change nothing but the database: its transaction may be undone after it returned.
        """
        try:
            return await self._changes.run(work)
        except (*FAILURES, MaybeStoredError) as error:
            raise as_graft_error(error) from error

    async def _read(self, work: Read[T], options: Mapping[str, Any]) -> T:
        try:
            return await self._read_once(work, options)
        except FAILURES as error:
            if not is_dead(error):
                raise
        # The connection had died while it lay idle, and with it all that are as old.
        return await self._read_once(work, options)

    async def _read_once(self, work: Read[T], options: Mapping[str, Any]) -> T:
        async with self.engine.connect() as plain:
            connection = await plain.execution_options(**options)
            async with connection.begin():
                return await work(connection)

    async def _whole(self, transaction: Coroutine[Any, Any, T]) -> T:
        # Also when the caller goes away: a connection that is left in the middle of a statement
        # has to be thrown away.
        task = asyncio.create_task(transaction)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(task)
        except FAILURES as error:
            raise as_graft_error(error) from error

    async def close(self) -> None:
        """Waits for running transactions and closes all connections."""
        await self._changes.close()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self.engine.dispose()
