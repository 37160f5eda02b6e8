"""What stock vLLM 0.32 does wrong with adapters, by number: each is shown on it, and asked of our service."""

from __future__ import annotations

from enum import IntEnum


class Case(IntEnum):
    """One way to go wrong; `says` is the row's title."""

    OLD_WEIGHTS = 1
    IN_PLACE = 2
    NOT_PRELOADED = 3
    FOLDER_GONE = 4
    ALL_PINNED = 5
    FAILED_ADD = 6
    TAKEN_SILENTLY = 7
    NAN = 8
    STARVATION = 9
    REMOVED_IN_FLIGHT = 10
    UNLOAD_FREES_NOTHING = 11
    ONE_GAUGE = 12
    BASE_BESIDE_ADAPTERS = 13
    BAD_ADAPTERS = 14

    @property
    def says(self) -> str:
        """The row's title."""
        return _TITLES[self]


_TITLES = {
    Case.OLD_WEIGHTS: "new weights under a known name",
    Case.IN_PLACE: "new weights while an answer runs",
    Case.NOT_PRELOADED: "a broken adapter asked for at once",
    Case.FOLDER_GONE: "evicted, and its folder gone",
    Case.ALL_PINNED: "all slots held",
    Case.FAILED_ADD: "asked again after a failed load",
    Case.TAKEN_SILENTLY: "adapters that fit nothing",
    Case.NAN: "NaN, and numbers that overflow",
    Case.STARVATION: "a flood on other adapters",
    Case.REMOVED_IN_FLIGHT: "unloaded while an answer runs",
    Case.UNLOAD_FREES_NOTHING: "memory after an unload",
    Case.ONE_GAUGE: "what is told of each adapter",
    Case.BASE_BESIDE_ADAPTERS: "the base beside full slots",
    Case.BAD_ADAPTERS: "bad adapters of every kind",
}
