"""Statistics of lengths in tokens: what a histogram is drawn from. A few bytes per row."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BINS = 16


@dataclass(frozen=True, slots=True)
class Bin:
    """How many rows have from_tokens up to, and not including, to_tokens."""

    from_tokens: int
    to_tokens: int
    rows: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of lengths in tokens."""

    min: int
    median: int
    mean: float
    p95: int
    p99: int
    max: int
    total: int
    histogram: tuple[Bin, ...]


class Lengths:
    """Collects lengths."""

    def __init__(self) -> None:
        self._values = array("i")

    def add(self, length: int) -> None:
        """Takes one more."""
        self._values.append(length)

    def __len__(self) -> int:
        return len(self._values)

    def values(self) -> NDArray[np.int64]:
        """All of them, in order; shape (rows,)."""
        return np.array(self._values, dtype=np.int64)

    def statistics(self) -> Statistics | None:
        """What there is to say of them; None where there are none."""
        values = self.values()
        if not len(values):
            return None
        half, p95, p99 = (
            int(np.percentile(values, q, method="inverted_cdf")) for q in (50, 95, 99)
        )
        return Statistics(
            min=int(values.min()),
            median=half,
            mean=float(values.mean()),
            p95=p95,
            p99=p99,
            max=int(values.max()),
            total=int(values.sum()),
            histogram=_histogram(values, p99),
        )


def _histogram(values: NDArray[np.int64], p99: int) -> tuple[Bin, ...]:
    """Even bins up to where 99 of 100 are, and one for the few that are longer."""
    low, high = int(values.min()), p99 + 1
    width = max(1, -(-(high - low) // _BINS))
    edges = list(range(low, high + width, width))
    longest = int(values.max()) + 1
    if longest > edges[-1]:
        edges.append(longest)
    counts, _ = np.histogram(values, bins=edges)
    if edges[-1] == longest:
        counts[-1] = int((values >= edges[-2]).sum())
    return tuple(
        Bin(start, end, int(count))
        for start, end, count in zip(edges, edges[1:], counts, strict=False)
    )
