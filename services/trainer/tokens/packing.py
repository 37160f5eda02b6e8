"""Which rows share a sequence."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

Pack = list[int]


def pack_rows(lengths: Sequence[int], capacity: int) -> list[Pack]:
    """Puts rows into packs of at most capacity tokens, the longest first and each where it fits best.

    Best-fit decreasing needs at most 11/9 of the fewest packs (Johnson 1974). No row is cut.

    Returns:
        Indices of the rows of each pack.
    """
    packs: list[Pack] = []
    free: list[tuple[int, int]] = []  # Sorted (tokens left, pack).
    for row in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        at = bisect.bisect_left(free, (lengths[row], -1))
        if at == len(free):
            packs.append([row])
            left, pack = capacity, len(packs) - 1
        else:
            left, pack = free.pop(at)
            packs[pack].append(row)
        bisect.insort(free, (left - lengths[row], pack))
    return packs
