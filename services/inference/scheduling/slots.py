"""Which adapters are on the engine's slots, and which has to let another onto its own.

A slot goes round among those that want one, in the order in which they began to want it. Its holder
takes new requests until its time is up and somebody waits; then it takes none, and the slot is free when
its last request ends. A slot that is being made ready takes one request, which makes it ready.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice


@dataclass(slots=True)
class Lane:
    """One adapter version on a slot; holders are its requests, opened_s is when it was ready."""

    opened_s: float
    holders: int = 0
    opening: bool = True
    closing: bool = False


class Slots:
    """The slots of one engine.

    Args:
        count: how many there are now.
        turn_s: how long a holder takes new requests while others wait.
    """

    def __init__(self, count: Callable[[], int], turn_s: float) -> None:
        self._count, self._turn_s = count, turn_s
        self._lanes: dict[str, Lane] = {}
        # In the order in which they began to want a slot.
        self._wanted: dict[str, None] = {}
        # Those of them that there are slots for.
        self._next: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self._lanes)

    def admits(self, slot: str) -> bool:
        """Whether a request for it may begin, as of rotate(); the empty slot needs none."""
        if not slot:
            return True
        lane = self._lanes.get(slot)
        if lane is not None:
            return not lane.opening and not lane.closing
        return slot in self._next

    def enter(self, slot: str, now_s: float) -> bool:
        """One more request is on it; true when it has to make the slot ready."""
        if not slot:
            return False
        self._wanted.pop(slot, None)
        lane = self._lanes.get(slot)
        opens = lane is None
        if lane is None:
            lane = self._lanes[slot] = Lane(now_s)
        lane.holders += 1
        return opens

    def ready(self, slot: str, now_s: float) -> None:
        """Others may come; its time begins."""
        if slot:
            lane = self._lanes[slot]
            lane.opening, lane.opened_s = False, now_s

    def leave(self, slot: str, *, opening: bool) -> None:
        """One request fewer; with opening, the one that was to make the slot ready."""
        if not slot:
            return
        lane = self._lanes[slot]
        lane.holders -= 1
        assert lane.holders >= 0
        if not lane.holders:
            del self._lanes[slot]
        elif opening:
            lane.opening = False

    def rotate(self, heads: Iterable[str], now_s: float) -> float:
        """Has as many holders close as slots are wanted.

        Args:
            heads: what the next requests of all adapters want.

        Returns:
            Seconds after which to ask again; infinite for not before something changes.
        """
        missing = {slot: None for slot in heads if slot and slot not in self._lanes}
        self._wanted = {slot: None for slot in self._wanted if slot in missing} | missing
        free = max(0, self._count() - len(self._lanes))
        self._next = frozenset(islice(self._wanted, free))
        closing = [lane for lane in self._lanes.values() if lane.closing]
        need = len(self._wanted) + len(self._lanes) - self._count() - len(closing)
        for lane in closing[: max(0, -need)]:
            lane.closing = False
        if need <= 0:
            return math.inf
        holders = [lane for lane in self._lanes.values() if not lane.closing and not lane.opening]
        holders.sort(key=lambda lane: lane.opened_s)
        for lane in holders[:need]:
            left_s = lane.opened_s + self._turn_s - now_s
            if left_s > 0:
                return left_s
            lane.closing = True
        return math.inf
