"""A change of the base as it is told: its stages, and who listens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from enum import Enum, auto

from graft.errors import GraftError

from services.inference.bases.domain import AS_IT_SAYS, Loading


class Strategy(Enum):
    """How the new base takes the old one's place; AUTO is decided by memory."""

    AUTO = auto()
    BESIDE = auto()
    REPLACE = auto()


class Stage(Enum):
    """Where a switch is; see SwitchStage of the contract."""

    CHECKING = auto()
    FETCHING = auto()
    DRAINING = auto()
    STARTING = auto()
    RETIRING = auto()
    RESTORING = auto()
    DONE = auto()
    FAILED = auto()
    CANCELLED = auto()


OVER = frozenset({Stage.DONE, Stage.FAILED, Stage.CANCELLED})
# The old one still serves, or can come back.
_UNDECIDED = frozenset({Stage.CHECKING, Stage.FETCHING, Stage.DRAINING, Stage.STARTING})


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for."""

    base: str
    strategy: Strategy = Strategy.AUTO
    loading: Loading = AS_IT_SAYS
    validate_only: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """A switch at one moment; see BaseSwitch of the contract. Times are Unix seconds."""

    number: int
    stage: Stage
    from_base: str
    to_base: str
    begin_s: float
    strategy: Strategy = Strategy.AUTO
    message: str = ""
    error: GraftError | None = None
    end_s: float = 0.0
    needed_bytes: int = 0
    available_bytes: int = 0


class Switch:
    """One change, and everybody who wants to know how it goes."""

    def __init__(self, number: int, wanted: Wanted, from_base: str) -> None:
        self.wanted = wanted
        # A handful: a switch has few stages.
        self._all = [Told(number, Stage.CHECKING, from_base, wanted.base, time.time())]
        self._moved = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    @property
    def told(self) -> Told:
        """Where it is."""
        return self._all[-1]

    @property
    def over(self) -> bool:
        """Whether it has ended, however."""
        return self.told.stage in OVER

    @property
    def can_be_cancelled(self) -> bool:
        """Whether the old base can still be what serves at its end."""
        return self.told.stage in _UNDECIDED

    def tell(self, stage: Stage, message: str = "", **changes: object) -> None:
        """It is here now."""
        end_s = time.time() if stage in OVER else 0.0
        self._all.append(
            replace(self.told, stage=stage, message=message, end_s=end_s, **changes)  # type: ignore[arg-type]
        )
        self._moved.set()
        self._moved = asyncio.Event()

    async def follow(self) -> AsyncIterator[Told]:
        """As it is now, and all that it becomes, up to its end, however slowly that is heard."""
        heard = len(self._all) - 1
        while True:
            told = self._all[heard]
            yield told
            if told.stage in OVER:
                return
            heard += 1
            if heard == len(self._all):
                await self._moved.wait()
