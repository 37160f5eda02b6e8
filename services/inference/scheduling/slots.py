"""Which adapters are on the engine's slots, and which has to let another onto its own.

A slot goes round among those that want one, in the order in which they began to want it. Its holder
takes new requests until its time is up and somebody waits; then it takes none, and the slot is free when
its last request ends. A slot that is being made ready takes one request, which makes it ready. Where
adapters share the engine's memory in pages, one takes as much of the room as it has pages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class Lane:
    """One adapter version on a slot; holders are its requests, opened_s is when it was ready."""

    opened_s: float
    room: int
    holders: int = 0
    opening: bool = True
    closing: bool = False


class Slots:
    """The slots of one engine.

    Args:
        room: how many there are now, or how many pages.
        turn_s: how long a holder takes new requests while others wait.
    """

    def __init__(self, room: Callable[[], int], turn_s: float) -> None:
        self._room, self._turn_s = room, turn_s
        self._lanes: dict[str, Lane] = {}
        # What each takes, in the order in which they began to want a slot.
        self._wanted: dict[str, int] = {}
        # Those of them that there is room for.
        self._next: set[str] = set()

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

    def enter(self, slot: str, now_s: float, room: int = 1) -> bool:
        """One more request is on it; true when it has to make the slot ready.

        Args:
            room: what its adapter takes.
        """
        if not slot:
            return False
        self._wanted.pop(slot, None)
        lane = self._lanes.get(slot)
        opens = lane is None
        if lane is None:
            lane = self._lanes[slot] = Lane(now_s, room)
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

    def rotate(self, heads: Mapping[str, int], now_s: float) -> float:
        """Has as many holders close as there is room wanted.

        Args:
            heads: the slots that the next requests of all adapters want, and what each takes.

        Returns:
            Seconds after which to ask again; infinite for not before something changes.
        """
        missing = {slot: room for slot, room in heads.items() if slot and slot not in self._lanes}
        self._wanted = {slot: missing[slot] for slot in self._wanted if slot in missing} | missing
        used = sum(lane.room for lane in self._lanes.values())
        self._choose(self._room() - used)
        closing = [lane for lane in self._lanes.values() if lane.closing]
        need = sum(self._wanted.values()) + used - self._room()
        need -= sum(lane.room for lane in closing)
        for lane in closing:
            if need + lane.room <= 0:
                lane.closing = False
                need += lane.room
        if need <= 0:
            return math.inf
        holders = [lane for lane in self._lanes.values() if not lane.closing and not lane.opening]
        holders.sort(key=lambda lane: lane.opened_s)
        for lane in holders:
            if need <= 0:
                break
            left_s = lane.opened_s + self._turn_s - now_s
            if left_s > 0:
                return left_s
            lane.closing = True
            need -= lane.room
        return math.inf

    def _choose(self, free: int) -> None:
        """Whoever has wanted one longest is not passed by smaller ones, or it would wait for ever."""
        self._next.clear()
        for slot, room in self._wanted.items():
            free -= room
            if free < 0:
                break
            self._next.add(slot)
