"""How long a worker's step has taken by now, beside how long its steps take: what its heartbeat says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from services.trainer.stall import Beat


class Pulse:
    """Counts only while a step is worked on: neither reading data, evaluating nor saving can be taken for a stall.

    Safe to read from another thread.

    Args:
        now: a clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._since: float | None = None
        self._step = 0
        self._longest_s = 0.0

    def works(self) -> None:
        """A step begins, with the reading of its batches."""
        with self._lock:
            self._since = self._now()

    def step_done(self, step: int) -> None:
        """A step has ended; until the next one begins, anything may take its time."""
        with self._lock:
            if self._since is not None and self._step:
                self._longest_s = max(self._longest_s, self._now() - self._since)
            self._since, self._step = None, step

    def beat(self) -> Beat:
        """Where it stands now."""
        with self._lock:
            quiet_s = 0.0 if self._since is None else self._now() - self._since
            return Beat(self._step, quiet_s, self._longest_s)
