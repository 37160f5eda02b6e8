"""A loss or gradient that is not a number: which rows it comes from, and how that is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from graft.errors import GraftError, Reason

_NAMED_ROWS = 8


class NotFiniteError(Exception):
    """A loss that is not a number, before it is known which rows it comes from."""


def culprits(items: Sequence[Any], is_fine: Callable[[Any], bool]) -> list[Any]:
    """Those items that are not fine by themselves; all of them, where each one alone is."""
    bad = [item for item in items if not is_fine(item)] or list(items)
    if not any(isinstance(item, list) for item in bad):
        return bad
    # Rows of one pack are apart in attention, but a number that is none times nothing is none.
    rows = [[row] for pack in bad for row in pack]
    return [row for row in rows if not is_fine(row)] or bad


def has_finite_gradients(parameters: Sequence[torch.nn.Parameter]) -> bool:
    """Whether every gradient is finite."""
    return all(one.grad is None or bool(torch.isfinite(one.grad).all()) for one in parameters)


def diverged_at(
    what: str, step: int, learning_rate: float, rows: Sequence[str], checkpoint: int
) -> GraftError:
    """The error of a training that left the finite numbers.

    Args:
        what: "The loss" or "The gradient".
        step: from 1.
        learning_rate: of that step.
        rows: where the rows stand that it comes from, as the user knows them.
        checkpoint: step of the last good one; 0 for none.
    """
    named = "; ".join(rows[:_NAMED_ROWS])
    more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
    where = f" ({named}{more})" if named else ""
    kept = f"; the checkpoint of step {checkpoint} is kept" if checkpoint else ""
    return GraftError(
        Reason.INVALID_SPEC,
        f"{what} is not finite at step {step}{where}, with a learning rate of {learning_rate:.3g}: "
        f"the training has diverged and nothing was committed{kept}",
        next_step="Look at these rows; else lower hyperparameters.learning_rate, raise warmup_ratio, or use "
        "precision bf16 or fp32 instead of fp16.",
        field="hyperparameters.learning_rate",
        step=str(step),
    )
