"""Conditions of gates as people write them."""

from __future__ import annotations

import pytest
from graft.conditions import describe_condition, parse_condition
from graft.errors import GraftError


@pytest.mark.parametrize(
    "text",
    [
        "eval_loss < 0.5",
        "accuracy >= 0.9",
        "eval_loss < @production",
        "eval_loss <= @production - 0.01",
        "bleu > @production + 1",
        "approvals >= 2",
        "approvals >= 1 by ann, bob",
        "label reviewed",
        "label team=a",
        "loss < -1.5e-05",
    ],
)
def test_a_condition_is_read_as_it_is_written(text: str) -> None:
    assert describe_condition(parse_condition(text)) == text


@pytest.mark.parametrize(
    "text", ["", "eval_loss", "eval_loss < ", "eval_loss = 0.5", "approvals < 2", "label", "a < b"]
)
def test_what_is_no_condition_is_told_how_to_write_one(text: str) -> None:
    with pytest.raises(GraftError, match="is not a condition"):
        parse_condition(text)
