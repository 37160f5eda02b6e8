"""Notices thrash: a version that is brought back into a tier soon after it was evicted from there."""

from __future__ import annotations

import time
from collections.abc import Callable

_MOST = 4096


class Thrash:
    """The last evictions, by tier and version.

    Args:
        window_s: how soon after its eviction a return counts.
        clock: for tests.
    """

    def __init__(self, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s, self._clock = window_s, clock
        # In the order of time: what is evicted again goes to the end.
        self._evicted_s: dict[tuple[str, str], float] = {}

    def evicted(self, tier: str, version: str) -> None:
        """It left the tier now."""
        self._evicted_s.pop((tier, version), None)
        self._evicted_s[tier, version] = self._clock()
        while len(self._evicted_s) > _MOST:
            del self._evicted_s[next(iter(self._evicted_s))]

    def brought(self, tier: str, version: str) -> bool:
        """It is back in the tier: whether its eviction was within the window."""
        evicted_s = self._evicted_s.pop((tier, version), None)
        return evicted_s is not None and self._clock() - evicted_s <= self._window_s
