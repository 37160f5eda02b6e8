"""What goes wrong between a client and the API server: errors before and after the deed, broken and repeated watches."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Fault:
    """One call that goes wrong.

    Args:
        status: of the answer; 0 closes the connection without one.
        done: whether what was asked is done all the same.
        reason, message: of the answer.
        retry_after_s: of the answer.
        method: only calls of this one; "" for all.
        plural: only calls about this kind; "" for all.
    """

    status: int = 500
    done: bool = False
    reason: str = "InternalError"
    message: str = "as the test says"
    retry_after_s: int | None = None
    method: str = ""
    plural: str = ""


@dataclass
class Faults:
    """Faults in a row, and at random.

    Attributes:
        next: each meets the next call that it fits, once.
        error_rate: share of calls that fail at random, half of them after the deed.
        watch_break_rate: share of a watch's events after which it breaks.
        repeat_rate: share of a watch's events that are sent twice, or again after a later one.
    """

    next: deque[Fault] = field(default_factory=deque)
    error_rate: float = 0.0
    watch_break_rate: float = 0.0
    repeat_rate: float = 0.0

    def __post_init__(self) -> None:
        self._random = random.Random(0)

    def reseed(self, seed: int) -> None:
        """Makes another row of chances."""
        self._random.seed(seed)

    def of(self, method: str, plural: str) -> Fault | None:
        """The fault that a call meets."""
        for fault in self.next:
            if fault.method in ("", method) and fault.plural in ("", plural):
                self.next.remove(fault)
                return fault
        if self._random.random() >= self.error_rate:
            return None
        status = self._random.choice((0, 429, 500, 503, 504))
        after = 0 if status == 429 else None
        return Fault(status, status != 429 and self._random.random() < 0.5, retry_after_s=after)

    def breaks(self) -> bool:
        """Whether a watch breaks now."""
        return self._random.random() < self.watch_break_rate

    def repeats(self) -> bool:
        """Whether an event comes again."""
        return self._random.random() < self.repeat_rate
