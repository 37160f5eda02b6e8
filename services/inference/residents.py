"""One load of one adapter version, and the slots of an engine that such loads take."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from services.inference.cache import Held
from services.inference.domain import AdapterVersion
from services.inference.engines.base import EngineAdapter
from services.inference.templates import ChatTemplate


class State(Enum):
    """State of one instance."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(slots=True, eq=False)
class Resident:
    """One load of one version; in_flight counts requests on it and those that wait for its load.

    kind is what its engine has to compute, and engine that engine's name; both are known for good once its
    files are here. template, once it is loaded, is what its conversations are rendered with; None is the
    base's own.
    held keeps its folder for as long as the engine may read it.
    """

    version: AdapterVersion
    number: int
    ready: asyncio.Future[None]
    kind: str = ""
    engine: str = ""
    state: State = State.LOADING
    in_flight: int = 0
    used: int = 0
    drain_began_s: float = 0.0
    adapter: EngineAdapter | None = None
    held: Held | None = None
    template: ChatTemplate | None = None

    def let_go(self) -> None:
        """The engine reads its folder no more."""
        if self.held is not None:
            self.held.release()


class Wishes:
    """Which versions are wanted more than others, by name; it orders residents by that.

    Attributes:
        pinned: never make room.
        preferred: make room when no other can.
    """

    def __init__(self) -> None:
        self.pinned: frozenset[str] = frozenset()
        self.preferred: frozenset[str] = frozenset()

    def victim(self, residents: Iterable[Resident]) -> Resident | None:
        """Idle before busy, on demand before preferred; then the one least recently used or loaded.

        A busy one takes nothing new from here on, so that a flood on it cannot keep others out.
        """

        def order(each: Resident) -> tuple[bool, bool, int]:
            busy = each.in_flight > 0
            return busy, each.version.name in self.preferred, each.number if busy else each.used

        may_go = (
            each
            for each in residents
            if each.state is State.READY and each.version.name not in self.pinned
        )
        return min(may_go, key=order, default=None)

    def by_worth(self, residents: Iterable[Resident]) -> list[Resident]:
        """Pinned first, then preferred, then the last used."""

        def worth(each: Resident) -> tuple[bool, bool, int]:
            name = each.version.name
            return name in self.pinned, name in self.preferred, each.used

        return sorted(residents, key=worth, reverse=True)

    @staticmethod
    def by_use(residents: Iterable[Resident]) -> list[Resident]:
        """The last used first."""
        return sorted(residents, key=lambda each: each.used, reverse=True)


class Slots:
    """How many slots are in use, and who waits for one, in order."""

    def __init__(self) -> None:
        self._used = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """Loads without a slot."""
        return len(self._waiters)

    def ask(self) -> asyncio.Future[None]:
        """Done when the slot is the caller's; withdraw() it in any case."""
        turn = asyncio.get_running_loop().create_future()
        self._waiters.append(turn)
        return turn

    def withdraw(self, turn: asyncio.Future[None]) -> None:
        """Waits no longer; a slot that was given already stays the caller's."""
        if turn in self._waiters:
            self._waiters.remove(turn)

    def give(self, most: int) -> None:
        """Gives out slots while there are any of so many."""
        while self._waiters and self._used < most:
            turn = self._waiters.popleft()
            if not turn.done():
                self._used += 1
                turn.set_result(None)

    def free(self) -> None:
        """One is empty again."""
        self._used -= 1
        assert self._used >= 0
