"""Commits of versions in SQL, many in one transaction with few statements.

Those that wait while a transaction runs go into the next together. Each is decided by itself, after
the ones before it: a refused one leaves nothing and spoils none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from graft.errors import GraftError

from services.common.caller import Caller, current_caller
from services.registry.catalogue.base import NewVersion, RequestKey
from services.registry.catalogue.change import Change
from services.registry.catalogue.commit_group import CommitGroup
from services.registry.catalogue.database import Database
from services.registry.domain import Version

_AT_ONCE = 64


@dataclass(eq=False, slots=True)
class _Waiting:
    new: NewVersion
    key: RequestKey | None
    caller: Caller
    answer: asyncio.Future[Version]


class CommitQueue:
    """Stores verified versions.

    Args:
        database: runs the transactions.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[_Waiting] = deque()
        self._running: asyncio.Task[None] | None = None

    async def commit(self, new: NewVersion, key: RequestKey | None) -> Version:
        """See Catalogue.commit_version. A caller that goes away changes nothing."""
        answer: asyncio.Future[Version] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(new, key, current_caller(), answer))
        if self._running is None:
            self._running = asyncio.create_task(self._store_waiting())
        return await asyncio.shield(answer)

    async def close(self) -> None:
        """Waits until all that wait are answered."""
        while self._running is not None:
            await asyncio.wait([self._running])

    async def _store_waiting(self) -> None:
        try:
            while self._waiting:
                group = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
                await self._store(group)
        finally:
            self._running = None

    async def _store(self, group: Sequence[_Waiting]) -> None:
        async def work(change: Change) -> list[Version | GraftError]:
            state = await CommitGroup.read(change, [(one.new, one.key) for one in group])
            outcomes = [_decide(state, one) for one in group]
            await state.store()
            return outcomes

        try:
            outcomes: Sequence[Version | Exception] = await self._database.change(work)
        except Exception as error:
            outcomes = [error] * len(group)
        for one, outcome in zip(group, outcomes, strict=True):
            if one.answer.done():
                continue
            if isinstance(outcome, Exception):
                one.answer.set_exception(outcome)
            else:
                one.answer.set_result(outcome)


def _decide(state: CommitGroup, one: _Waiting) -> Version | GraftError:
    try:
        return state.commit(one.new, one.key, one.caller)
    except GraftError as error:
        return error
