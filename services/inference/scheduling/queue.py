"""Requests that wait for their turn, by adapter, and what a turn has used."""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left, insort
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from services.inference.scheduling.limits import Allowance, Limit
from services.inference.scheduling.rate import QueueRate
from services.inference.scheduling.shares import Share

if TYPE_CHECKING:
    from services.inference.scheduling.scheduler import Scheduler

# How much of the mean answer the last one is.
_NEWEST = 0.2
# Of an adapter that has answered nothing yet.
_UNKNOWN_COMPLETION = 256.0


class Cause(Enum):
    """What a request waited for last."""

    NOTHING = "nothing"
    CAPACITY = "capacity"
    SLOT = "slot"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class Claim:
    """Who asks for a turn, and for what.

    Attributes:
        namespace: whose adapter it is.
        adapter: id within the namespace, or the base's.
        slot: the version that has to be on a slot; empty for the base, which needs none.
        prompt_tokens: as well as they are known.
        max_tokens: new ones at most.
        priority: counts as having come so many seconds earlier than the adapter's others.
        time_remaining_s: until the caller's deadline; None for none.
        engine: which of several computes it.
        room: what the version takes of the engine's room for adapters: one slot, or its pages.
    """

    namespace: str
    adapter: str
    slot: str
    prompt_tokens: int
    max_tokens: int
    priority: int = 0
    time_remaining_s: float | None = None
    engine: str = ""
    room: int = 1


class Flow:
    """The requests of one adapter: those that wait, in order, and what those that run have used.

    Attributes:
        cause: what its first one waited for when it was last looked at.
        mean_completion: tokens of an answer, as they were lately.
    """

    def __init__(self, name: str, namespace: Allowance, share: Share, limit: Limit, now_s: float):
        self.name, self.share = name, share
        self.own, self.namespace = Allowance(limit, now_s), namespace
        self.waiting: list[Turn] = []
        self.rate, self.cause = QueueRate(), Cause.CAPACITY
        self.mean_completion = _UNKNOWN_COMPLETION

    def enter(self, turn: Turn, now_s: float) -> None:
        """It waits, in its place."""
        if not self.waiting:
            self.rate.begin(now_s)
            self.cause = Cause.CAPACITY
        insort(self.waiting, turn, key=_rank)
        self.share.enter()

    def leave(self, turn: Turn) -> None:
        """It waits no longer."""
        place = bisect_left(self.waiting, turn.rank, key=_rank)
        assert self.waiting[place] is turn
        del self.waiting[place]
        self.share.leave()

    def tokens_ahead(self, turn: Turn) -> float:
        """What those that are before it are expected to take."""
        return sum(each.expected for each in self.waiting[: self.waiting.index(turn)])

    def wait_s(self, now_s: float) -> float:
        """Seconds until its limits, or its namespace's, let one more begin; infinite for unknown."""
        return max(self.own.wait_s(now_s), self.namespace.wait_s(now_s))

    def rate_wait_s(self, now_s: float, ahead_tokens: float) -> float:
        """Seconds until its token rates let one begin behind so many tokens."""
        return max(
            self.own.rate_wait_s(now_s, ahead_tokens),
            self.namespace.rate_wait_s(now_s, ahead_tokens),
        )

    def lift(self, now_s: float) -> None:
        """Its limits hold it back: what it does not get meanwhile it has not been denied."""
        self.share.lift()
        if self.namespace.wait_s(now_s) and self.share.parent is not None:
            self.share.parent.lift()

    def charge(self, tokens: float, now_s: float) -> None:
        """Tokens of it were used."""
        self.share.charge(tokens)
        self.own.charge(tokens, now_s)
        self.namespace.charge(tokens, now_s)

    def run(self, count: int) -> None:
        """So many more run, or fewer."""
        self.own.running += count
        self.namespace.running += count

    def learn(self, completion_tokens: int) -> None:
        """An answer has ended."""
        if completion_tokens:
            self.mean_completion += _NEWEST * (completion_tokens - self.mean_completion)

    def at_rest(self, now_s: float) -> bool:
        """Whether a new one would be the same, but for what it learnt."""
        return not self.waiting and not self.share.ahead and self.own.at_rest(now_s)


class Turn:
    """One request's right to use the engine: waits, is given, and is closed in any case.

    Its cost is estimated when it is given, corrected as its tokens come, and exact when it is closed.
    A turn that is closed before start() has used nothing.

    Attributes:
        waited_s: how long it waited.
        cause: what it waited for last.
        expected: tokens that it is expected to take.
        charged: tokens that it counts with now.
    """

    def __init__(self, scheduler: Scheduler, flow: Flow, claim: Claim, number: int, now_s: float):
        self._scheduler, self.flow, self.claim = scheduler, flow, claim
        self.number, self.rank = number, (now_s - claim.priority, number)
        self.arrived_s, self.waited_s, self.cause = now_s, 0.0, Cause.NOTHING
        self.given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Whoever evicts it may find nobody who still listens.
        self.given.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.slot, self.room, self.opens = claim.slot, claim.room, False
        self.queued = self.counted = self.started = self.closed = False
        self._prompt_tokens, self._completion_tokens, self.charged = claim.prompt_tokens, 0, 0.0
        self.expected = claim.prompt_tokens + min(flow.mean_completion, claim.max_tokens)

    @property
    def deadline_s(self) -> float:
        """When its caller's time is up; infinite for never."""
        left_s = self.claim.time_remaining_s
        return math.inf if left_s is None else self.arrived_s + left_s

    def move(self, slot: str, room: int = 1) -> None:
        """Another version answers than the one that it asked for: its name moved while it waited."""
        if slot != self.slot:
            self._scheduler.move(self, slot, room)

    def prompt(self, tokens: int) -> None:
        """What its prompt really has."""
        self._settle(self.charged + tokens - self._prompt_tokens)
        self._prompt_tokens = tokens

    def ready(self) -> None:
        """Its adapter is there: others of the same may come."""
        self._scheduler.ready(self)

    def start(self) -> None:
        """It goes to the engine now."""
        self.started = True

    def count(self, tokens: int) -> None:
        """So many new tokens came."""
        self._completion_tokens += tokens
        used = self._prompt_tokens + self._completion_tokens
        if used > self.charged:
            self._settle(used)

    def close(self) -> None:
        """It uses the engine no longer. Once is enough, and more do no harm."""
        self._scheduler.close(self)

    def charge_expected(self) -> None:
        """Counts it as if it had used what is expected."""
        self._settle(self.expected)

    def charge_used(self) -> None:
        """Counts what it has used."""
        used = self._prompt_tokens + self._completion_tokens
        self._settle(used if self.started else 0)
        self.flow.learn(self._completion_tokens)

    def _settle(self, tokens: float) -> None:
        change, self.charged = tokens - self.charged, tokens
        if change:
            # One whose reader stalls is closed, and what still comes of it is charged all the same.
            if self.counted and not self.closed:
                self._scheduler.in_flight_tokens += change
            self.flow.charge(change, self._scheduler.now_s())


def _rank(turn: Turn) -> tuple[float, int]:
    return turn.rank
