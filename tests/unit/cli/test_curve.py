"""The curve at the end of a training run."""

from __future__ import annotations

import math

from graft.cli.curve import draw_curve
from hypothesis import given
from hypothesis import strategies as st


def test_a_falling_loss_falls_from_left_to_right() -> None:
    assert draw_curve([4.0, 3.0, 2.0, 1.0], height=2) == [
        "4 █▃  ",
        "1 ██▆▁",
    ]


def test_one_point_is_no_curve() -> None:
    assert draw_curve([1.0]) == []
    assert draw_curve([1.0, math.nan]) == []


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=300), st.integers(1, 80))
def test_any_values_fit_into_the_box(values: list[float], width: int) -> None:
    lines = draw_curve(values, width=width, height=4)
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 11 + width
