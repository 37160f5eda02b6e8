"""A curve drawn with characters, small enough for the end of a training run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def draw_curve(values: Sequence[float], width: int = 60, height: int = 6) -> list[str]:
    """Lines of text with the values from left to right; the highest and lowest stand beside them.

    Args:
        values: what is drawn; values that are not finite are left out.
        width: characters of the curve at most.
        height: lines.
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return []
    points = _columns(finite, min(width, len(finite)))
    low, high = min(points), max(points)
    span = (high - low) or 1.0
    eighths = [1 + round((value - low) / span * (8 * height - 1)) for value in points]
    labels = {height - 1: f"{high:.3g}", 0: f"{low:.3g}"}
    margin = max(len(label) for label in labels.values())
    lines = []
    for row in range(height - 1, -1, -1):
        body = "".join(_EIGHTHS[max(0, min(8, filled - 8 * row))] for filled in eighths)
        lines.append(f"{labels.get(row, ''):>{margin}} {body}")
    return lines


def _columns(values: Sequence[float], width: int) -> list[float]:
    """Means of as many equal stretches as there are columns."""
    edges = [round(index * len(values) / width) for index in range(width + 1)]
    return [sum(values[start:end]) / (end - start) for start, end in itertools.pairwise(edges)]
