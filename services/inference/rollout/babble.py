"""Whether an answer goes round in circles, by its tokens."""

from __future__ import annotations

from collections.abc import Sequence

TAIL_TOKENS = 48
"""So many last tokens are looked at; a shorter answer never counts as one that repeats itself."""
_LONGEST_PERIOD = 12


def repeats(tail: Sequence[int]) -> bool:
    """Whether the last TAIL_TOKENS tokens are one short piece again and again, at least four times."""
    if len(tail) < TAIL_TOKENS:
        return False
    last = list(tail)[-TAIL_TOKENS:]
    return any(last[period:] == last[:-period] for period in range(1, _LONGEST_PERIOD + 1))
