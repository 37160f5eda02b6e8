"""How fast a queue moves, as it was measured: for deadlines that cannot be met and delays to suggest."""

from __future__ import annotations

# Fewer turns, or a shorter time, say nothing.
_LEAST_TURNS = 8
_LEAST_S = 0.2
# What is longer ago counts for half.
_HALF_S = 120.0


class QueueRate:
    """Tokens per second for which turns were given since somebody began to wait.

    Everything that a queue waits for is in it: others' shares, slots and limits. It begins anew with
    each time that somebody waits, since what was measured under another load says nothing now.
    """

    def __init__(self) -> None:
        self._began_s, self._tokens, self._turns = 0.0, 0.0, 0

    def begin(self, now_s: float) -> None:
        """Somebody waits, and nobody did before."""
        self._began_s, self._tokens, self._turns = now_s, 0.0, 0

    def given(self, tokens: float, now_s: float) -> None:
        """One got its turn."""
        passed_s = now_s - self._began_s
        if passed_s > _HALF_S:
            self._began_s += passed_s / 2
            self._tokens /= 2
        self._tokens += tokens
        self._turns += 1

    def wait_s(self, ahead_tokens: float, now_s: float) -> float | None:
        """Seconds until so many tokens have had their turns; None while too little was seen."""
        passed_s = now_s - self._began_s
        if self._turns < _LEAST_TURNS or passed_s < _LEAST_S:
            return None
        return ahead_tokens * passed_s / self._tokens
