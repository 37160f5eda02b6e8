"""Hears of the changes that other registry processes store in the same PostgreSQL database.

A wake-up only: what changed is read from the tables, so nothing is lost while nobody can hear.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import asyncpg

from services.common.logs import get_logger
from services.registry.catalogue.changes import CHANNEL
from services.registry.catalogue.postgres import connect, place_of
from services.registry.pulse import Pulse

# While it cannot hear, whoever follows looks that often.
_AWAY_S = 1.0
# A connection that died without a word is found out after that.
_CHECK_S = 10.0


class Listener:
    """Fires a pulse at each change of any process, and every second while it cannot hear.

    Args:
        dsn: the database.
        changed: what to fire.
    """

    def __init__(self, dsn: str, changed: Pulse) -> None:
        self._dsn, self._changed = dsn, changed
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to listen, and goes on when the connection breaks."""
        self._task = asyncio.create_task(self._listen_on())

    async def close(self) -> None:
        """Ends it."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _listen_on(self) -> None:
        hears = True
        while True:
            try:
                await self._listen()
                hears = True
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                if hears:
                    get_logger().warning(
                        "cannot hear of other registries' changes; looking for them every second",
                        database=place_of(self._dsn),
                        error=str(error) or type(error).__name__,
                    )
                hears = False
            self._changed.fire()
            await asyncio.sleep(_AWAY_S)

    async def _listen(self) -> None:
        """Listens until the connection ends."""
        connection = await connect(self._dsn)
        try:
            ended = asyncio.Event()
            connection.add_termination_listener(lambda _: ended.set())
            await connection.add_listener(CHANNEL, self._hear)
            # For what came while nobody listened.
            self._changed.fire()
            while not ended.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(_CHECK_S):
                        await ended.wait()
                if not ended.is_set():
                    await connection.execute("SELECT 1", timeout=_CHECK_S)
        finally:
            connection.terminate()

    def _hear(self, *_: Any) -> None:
        self._changed.fire()
