"""Gives turns on one engine: as many at once as keep it full, and each to whom it is due.

Namespaces share the engine by weight, and adapters their namespace's part; within an adapter the order
is that of arrival, moved by priority. A turn needs a place on the engine, for an adapter a slot, and
what limits allow. What it costs is told as its tokens come.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from graft.errors import GraftError

from services.inference.scheduling import refusals
from services.inference.scheduling.flows import Flows
from services.inference.scheduling.limits import Limit
from services.inference.scheduling.queue import Cause, Claim, Flow, Turn
from services.inference.scheduling.slots import Slots


@dataclass(frozen=True, slots=True)
class SchedulingOptions:
    """See InferenceSettings."""

    max_in_flight: int = 256
    max_waiting: int = 1024
    slot_turn_s: float = 0.5
    slot_timeout_s: float = 30.0
    rate_limit_wait_s: float = 10.0
    adapter_limits: Mapping[str, Limit] = field(default_factory=dict)
    namespace_limits: Mapping[str, Limit] = field(default_factory=dict)


class Scheduler:
    """The queue in front of one engine.

    Args:
        options: its settings.
        slots: how many different adapter versions the engine computes at once, now; where they share
            its memory in pages, how many of those it has.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        options: SchedulingOptions,
        slots: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options, self.now_s = options, clock
        self._slots = Slots(slots, options.slot_turn_s)
        self._flows = Flows(options.adapter_limits, options.namespace_limits)
        # Those that have requests waiting; the order does not matter.
        self._backlog: dict[Flow, None] = {}
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self.in_flight = 0
        # What the turns in flight are expected to use, or use already where that is more.
        self.in_flight_tokens = 0.0
        self.waiting = 0

    @property
    def oldest_s(self) -> float:
        """How long the request that waits longest has waited; 0 while none waits. From any thread.

        Without those that their own limits hold back: more engines would not help them.
        """
        now_s = self.now_s()
        flows = [flow for flow in tuple(self._backlog) if flow.cause is not Cause.LIMIT]
        arrived_s = [one.arrived_s for flow in flows for one in tuple(flow.waiting)]
        return now_s - min(arrived_s, default=now_s)

    async def turn(self, claim: Claim) -> Turn:
        """Waits until it is the claim's turn; close() it in any case.

        Raises:
            GraftError: OVERLOADED when too many wait or no slot becomes free, RATE_LIMITED,
                DEADLINE_EXCEEDED when it would not, or did not, get its turn in time.
        """
        turn = self._enter(claim)
        try:
            self._pump()
            if not turn.given.done():
                turn.queued = True
                self._check(turn)
                await self._wait(turn)
            turn.given.result()
        except BaseException:
            self.close(turn)
            raise
        return turn

    def _enter(self, claim: Claim) -> Turn:
        now_s = self.now_s()
        flow = self._flows.of(claim.namespace, claim.adapter, now_s)
        turn = Turn(self, flow, claim, next(self._numbers), now_s)
        flow.enter(turn, now_s)
        self._backlog[flow] = None
        self.waiting += 1
        return turn

    async def _wait(self, turn: Turn) -> None:
        timeout_s = self._options.slot_timeout_s
        give_up_s = turn.arrived_s + timeout_s if turn.slot else math.inf
        while not turn.given.done():
            until_s = min(turn.deadline_s, give_up_s)
            left_s = None if until_s == math.inf else max(0.0, until_s - self.now_s())
            # Not by a cancelled future: whoever gives the turn must see that it is taken or not.
            await asyncio.wait((turn.given,), timeout=left_s)
            now_s = self.now_s()
            if turn.given.done() or now_s < until_s:
                continue
            if now_s >= turn.deadline_s:
                raise refusals.expired(turn.flow.name, now_s - turn.arrived_s)
            if turn.flow.cause is Cause.SLOT:
                raise refusals.no_slot(turn.flow.name, now_s - turn.arrived_s)
            give_up_s = now_s + timeout_s

    def _check(self, turn: Turn) -> None:
        """Refuses at once what would wait in vain, and what the queue has no place for."""
        flow, now_s = turn.flow, self.now_s()
        ahead = flow.tokens_ahead(turn)
        limit_s = flow.rate_wait_s(now_s, ahead)
        if limit_s > self._options.rate_limit_wait_s:
            raise refusals.rate_limited(flow.name, limit_s)
        wait_s = flow.rate.wait_s(ahead, now_s)
        left_s = turn.claim.time_remaining_s
        if left_s is not None and max(limit_s, wait_s or 0.0) > left_s:
            raise refusals.too_late(flow.name, left_s, max(limit_s, wait_s or 0.0))
        most, count = flow.own.limit.max_waiting, len(flow.waiting)
        if most is not None and count > most:
            raise refusals.queue_full(flow.name, count - 1, wait_s)
        if self.waiting > self._options.max_waiting:
            self._push_out(turn)

    def _push_out(self, turn: Turn) -> None:
        """The longest queue loses its last: a flood takes nobody's places but its own."""
        longest = max(self._backlog, key=_length)
        if _length(longest) <= _length(turn.flow):
            longest = turn.flow
        last, now_s = longest.waiting[-1], self.now_s()
        wait_s = longest.rate.wait_s(longest.tokens_ahead(last), now_s)
        error = refusals.queue_full(longest.name, len(longest.waiting) - 1, wait_s)
        if last is turn:
            raise error
        self._evict(last, error)

    def _evict(self, turn: Turn, error: GraftError) -> None:
        self._withdraw(turn)
        turn.closed = True
        turn.given.set_exception(error)

    def _pump(self) -> None:
        """Gives what turns there are, and sees to it that it is called when there may be more."""
        rotate_s, limits_s, now_s = math.inf, math.inf, self.now_s()
        while self._backlog:
            if self.in_flight >= self._options.max_in_flight:
                # Whoever ends next calls again.
                break
            rotate_s = self._slots.rotate(self._heads(now_s), now_s)
            flow = self._next(now_s)
            if flow is None:
                limits_s = self._limits_s(now_s)
                break
            self._give(flow.waiting[0], now_s)
        self._call_again(min(rotate_s, limits_s))

    def _heads(self, now_s: float) -> dict[str, int]:
        """The slots that are wanted next, but for those whom their own limits hold back."""
        heads = [flow.waiting[0] for flow in self._backlog if not flow.wait_s(now_s)]
        return {turn.slot: turn.room for turn in heads}

    def _next(self, now_s: float) -> Flow | None:
        """The flow with the least that may begin now."""
        found: Flow | None = None
        for flow in self._backlog:
            if flow.wait_s(now_s):
                flow.cause = Cause.LIMIT
                flow.lift(now_s)
            elif not self._slots.admits(flow.waiting[0].slot):
                flow.cause = Cause.SLOT
            elif found is None or _order(flow) < _order(found):
                found = flow
        return found

    def _give(self, turn: Turn, now_s: float) -> None:
        flow = turn.flow
        if now_s >= turn.deadline_s:
            self._evict(turn, refusals.expired(flow.name, now_s - turn.arrived_s))
            return
        self._withdraw(turn)
        if turn.queued:
            turn.cause, flow.cause = flow.cause, Cause.CAPACITY
        flow.rate.given(turn.expected, now_s)
        flow.share.choose()
        flow.run(1)
        turn.counted = True
        turn.charge_expected()
        turn.opens = self._slots.enter(turn.slot, now_s, turn.room)
        self.in_flight += 1
        turn.waited_s = now_s - turn.arrived_s
        turn.given.set_result(None)

    def _withdraw(self, turn: Turn) -> None:
        flow = turn.flow
        flow.leave(turn)
        self.waiting -= 1
        if not flow.waiting:
            del self._backlog[flow]

    def ready(self, turn: Turn) -> None:
        """Its adapter is there: others of the same may come."""
        if turn.opens:
            turn.opens = False
            self._slots.ready(turn.slot, self.now_s())
            self._pump()

    def move(self, turn: Turn, slot: str, room: int) -> None:
        """It needs another slot than it has; one more than there are may be in use for a while."""
        self._slots.leave(turn.slot, opening=turn.opens)
        turn.slot, turn.room = slot, room
        turn.opens = self._slots.enter(slot, self.now_s(), room)
        self._pump()

    def close(self, turn: Turn) -> None:
        """Ends a turn, or the wait for it."""
        if turn.closed:
            return
        turn.closed = True
        if turn.counted:
            self.in_flight -= 1
            self.in_flight_tokens -= turn.charged
            turn.charge_used()
            turn.flow.run(-1)
            self._slots.leave(turn.slot, opening=turn.opens)
        else:
            self._withdraw(turn)
        if not self.in_flight and not self.waiting:
            self._flows.settle()
        self._pump()

    def _limits_s(self, now_s: float) -> float:
        return min((flow.wait_s(now_s) or math.inf for flow in self._backlog), default=math.inf)

    def _call_again(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay_s < math.inf:
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._pump)


def _length(flow: Flow) -> float:
    return len(flow.waiting) / flow.share.weight


def _order(flow: Flow) -> tuple[tuple[float, ...], int]:
    # Where two have had the same, the one that came first; a priority counts within an adapter alone.
    return flow.share.order, flow.waiting[0].number
