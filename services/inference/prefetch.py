"""Brings versions to this machine's disk before anybody asks for them: one at a time, and only into free room.

It never loads anything into the engine, and what fails is said by the first request that needs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from graft.errors import GraftError

from services.common.logs import get_logger
from services.inference.domain import AdapterVersion
from services.inference.loading import Preparation


class Prefetch:
    """A queue of versions by name; one that is wanted twice is fetched once.

    Args:
        describe: a version by its name.
    """

    def __init__(
        self, preparation: Preparation, describe: Callable[[str], Awaitable[AdapterVersion]]
    ) -> None:
        self._preparation, self._describe = preparation, describe
        self._wanted: dict[str, None] = {}
        self._task: asyncio.Task[None] | None = None

    def want(self, name: str) -> None:
        """It may be asked for soon."""
        self._wanted[name] = None
        if self._task is None:
            self._task = asyncio.create_task(self._work())

    def is_coming(self, name: str) -> bool:
        """Whether it is wanted and was neither fetched nor given up yet."""
        return name in self._wanted

    async def close(self) -> None:
        """Ends what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        try:
            while self._wanted:
                name = next(iter(self._wanted))
                try:
                    await self._fetch(name)
                except GraftError as error:
                    get_logger().info("not prefetched", version=name, error=str(error))
                except Exception as error:
                    get_logger().error("not prefetched", version=name, exc_info=error)
                self._wanted.pop(name, None)
        finally:
            self._task = None

    async def _fetch(self, name: str) -> None:
        version = await self._describe(name)
        prepared = await self._preparation.prepare(version, make_room=False)
        prepared.held.release()
        get_logger().info("adapter prefetched", version=name)
