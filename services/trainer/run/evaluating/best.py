"""Which evaluation was the best so far, and whether it is time to stop. No torch here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from services.trainer.spec.evaluation import Evaluation


class BestSoFar:
    """Follows one figure over the evaluations.

    Any gain makes a best evaluation; only gains above min_improvement, since the last such gain, make
    patience begin anew. A figure that is no number is never a gain.

    Args:
        evaluation: names the figure, its direction, patience and min_improvement.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.figure = evaluation.best_metric
        self._sign = 1.0 if evaluation.best_is_highest else -1.0
        self._stopping = evaluation.early_stopping
        self.step: int | None = None
        self.value: float | None = None
        self._milestone: float | None = None
        self._without_gain = 0

    @property
    def without_gain(self) -> int:
        """Evaluations since the last gain above min_improvement."""
        return self._without_gain

    def described(self) -> str:
        """The best evaluation in words."""
        return "any number" if self.value is None else f"{self.value:.6g} (step {self.step})"

    def judge(self, step: int, value: float) -> bool:
        """Takes the figure of an evaluation after a step; whether patience is at its end."""
        finite = math.isfinite(value)
        if finite and (self.value is None or self._sign * value > self._sign * self.value):
            self.step, self.value = step, value
        if self._stopping is None:
            return False
        least = self._stopping.min_improvement
        gained = finite and (
            self._milestone is None or self._sign * (value - self._milestone) > least
        )
        self._without_gain = 0 if gained else self._without_gain + 1
        if gained:
            self._milestone = value
        return self._without_gain >= self._stopping.patience

    def state(self) -> dict[str, Any]:
        """What restore() takes, as JSON's values."""
        return {
            "step": self.step,
            "value": self.value,
            "milestone": self._milestone,
            "without_gain": self._without_gain,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where state() was taken."""
        self.step, self.value = state["step"], state["value"]
        self._milestone, self._without_gain = state["milestone"], state["without_gain"]
