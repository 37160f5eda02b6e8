"""Locks by name that hold in all registry processes of one catalogue: who removes bytes, and who keeps them.

A SQLite catalogue belongs to one process. On PostgreSQL they are advisory locks, all of a process
on one connection, with which they end.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.registry.catalogue.failures import FAILURES, as_graft_error

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.1


class Locks:
    """Locks of one catalogue, for one process.

    Args:
        engine: the catalogue's database.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._shared = _Session(engine) if engine.dialect.name == "postgresql" else None
        self._local: dict[str, _Local] = {}

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[None]:
        """Waits for the lock and holds it during the block.

        Raises:
            GraftError: UNAVAILABLE when the database cannot be reached.
        """
        async with self._in_process(name):
            if self._shared is None:
                yield
                return
            async with self._shared.used():
                pause_s = _FIRST_PAUSE_S
                while not await self._shared.take(name):
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                try:
                    yield
                finally:
                    await self._shared.give(name)

    @asynccontextmanager
    async def try_hold(self, name: str) -> AsyncIterator[bool]:
        """Holds the lock during the block, unless somebody else does; says whether.

        Raises:
            GraftError: as hold.
        """
        if name in self._local:
            yield False
            return
        async with self._in_process(name):
            if self._shared is None:
                yield True
                return
            async with self._shared.used():
                if not await self._shared.take(name):
                    yield False
                    return
                try:
                    yield True
                finally:
                    await self._shared.give(name)

    @asynccontextmanager
    async def _in_process(self, name: str) -> AsyncIterator[None]:
        local = self._local.setdefault(name, _Local())
        local.users += 1
        try:
            async with local.lock:
                yield
        finally:
            local.users -= 1
            if not local.users:
                del self._local[name]


class _Local:
    def __init__(self) -> None:
        self.lock, self.users = asyncio.Lock(), 0


class _Session:
    """The connection that holds a process's locks, for as long as it uses any."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._turn = asyncio.Lock()
        self._connection: AsyncConnection | None = None
        self._users = 0

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """Keeps the connection during the block."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                await asyncio.shield(self._leave())

    async def take(self, name: str) -> bool:
        """Takes a lock that no other process holds; says whether it did."""
        asking = asyncio.ensure_future(self._ask(name, lock=True))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            await self.give(name)
            raise

    async def give(self, name: str) -> None:
        """Gives a lock back, if it was not lost with the connection."""
        await asyncio.shield(self._ask(name, lock=False))

    async def _ask(self, name: str, lock: bool) -> bool:
        ask = func.pg_try_advisory_lock if lock else func.pg_advisory_unlock
        async with self._turn:
            try:
                if self._connection is None:
                    if not lock:
                        return False
                    plain = await self._engine.connect()
                    # Without a transaction: it may stay for longer than one may lie open.
                    self._connection = await plain.execution_options(isolation_level="AUTOCOMMIT")
                return bool(await self._connection.scalar(select(ask(_number(name)))))
            except FAILURES as error:
                await self._drop()
                if lock:
                    raise as_graft_error(error) from error
                return False

    async def _leave(self) -> None:
        async with self._turn:
            if not self._users and self._connection is not None:
                connection, self._connection = self._connection, None
                try:
                    await connection.execute(select(func.pg_advisory_unlock_all()))
                except FAILURES:
                    await connection.invalidate()
                await connection.close()

    async def _drop(self) -> None:
        """Never back into the pool with locks that nobody knows of."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            try:
                await connection.invalidate()
            finally:
                await connection.close()


def _number(name: str) -> int:
    """The lock's 64 bits, signed as PostgreSQL wants them."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
