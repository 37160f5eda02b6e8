"""When a lease has ended: after its time to live, watched by this process on its own steady clock.

No clock of another machine counts, and no wall clock: one that jumps frees nothing early. Neither does
time count in which nobody looked, because then nobody could renew either: the database was away, or
this process stood still.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.registry.catalogue.leases import LeaseSeen


@dataclass(slots=True)
class _Watched:
    renewals: int
    watched_s: float = 0.0


class LeaseClock:
    """Watches leases.

    Args:
        monotonic: seconds of a clock that never jumps.
        longest_gap_s: time between two looks that are further apart does not count.
    """

    def __init__(self, monotonic: Callable[[], float], longest_gap_s: float) -> None:
        self._monotonic, self._longest_gap_s = monotonic, longest_gap_s
        self._looked_s = monotonic()
        self._watched: dict[str, _Watched] = {}

    def look(self, seen: Sequence[LeaseSeen]) -> list[LeaseSeen]:
        """Those of all leases there are, as they were just read, that have ended."""
        now_s = self._monotonic()
        gap_s, self._looked_s = now_s - self._looked_s, now_s
        counted_s = gap_s if gap_s <= self._longest_gap_s else 0.0
        before, self._watched = self._watched, {}
        ended = []
        for lease in seen:
            known = before.get(lease.id)
            if known is None or known.renewals != lease.renewals:
                known = _Watched(lease.renewals)
            else:
                known.watched_s += counted_s
            self._watched[lease.id] = known
            if known.watched_s >= lease.ttl_s:
                ended.append(lease)
        return ended
