"""How fast the queue moves, as it was measured: for deadlines that cannot be met and delays to suggest."""

from __future__ import annotations

from collections import deque

# Fewer turns, or a shorter time, say nothing.
_LEAST_TURNS = 8
_LEAST_BUSY_S = 0.2


class QueueRate:
    """Tokens per second for which turns were given while others waited.

    Args:
        remembered: how many turns are looked back at.
    """

    def __init__(self, remembered: int) -> None:
        # When each was given, on a clock that runs only while somebody waits, and its tokens.
        self._turns: deque[tuple[float, float]] = deque(maxlen=max(remembered, _LEAST_TURNS))
        self._tokens = 0.0
        self._busy_s, self._seen_s, self._waiting = 0.0, 0.0, False

    def see(self, now_s: float, *, waiting: bool) -> None:
        """Whether anybody waits from now on."""
        if self._waiting:
            self._busy_s += now_s - self._seen_s
        self._seen_s, self._waiting = now_s, waiting

    def given(self, tokens: float, now_s: float) -> None:
        """A turn was given to one that had waited."""
        self.see(now_s, waiting=self._waiting)
        if len(self._turns) == self._turns.maxlen:
            self._tokens -= self._turns[0][1]
        self._turns.append((self._busy_s, tokens))
        self._tokens += tokens

    @property
    def tokens_per_s(self) -> float | None:
        """None while too little was seen."""
        if len(self._turns) < _LEAST_TURNS:
            return None
        began_s, first = self._turns[0]
        passed_s = self._busy_s - began_s
        return (self._tokens - first) / passed_s if passed_s >= _LEAST_BUSY_S else None
