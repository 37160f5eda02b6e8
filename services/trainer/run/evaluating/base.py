"""What a trainer asks of whatever measures its model; by itself it adds nothing. No torch here; evaluator.py measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

Figures = dict[str, float]


class Measurable(Protocol):
    """A trainer that can be measured."""

    model: Any

    def held_out(self) -> tuple[float, Mapping[str, float]]:
        """Its loss on the held-out rows, and its objective's further figures of them."""


class Evaluations:
    """The evaluations of one job: the held-out loss of its trainer alone, unless a subclass does more.

    Figures are by name, without the prefix that they have in reports.
    """

    # The step after which the training was ended early.
    stopped_at: int | None = None

    def begin(self, trainer: Measurable) -> None:
        """Measures the untrained model, unless that is known from before an interruption."""

    def measure(self, model: Any, loss: float, further: Mapping[str, float]) -> Figures:
        """The figures of an evaluation while training.

        Args:
            model: as it is trained.
            loss, further: what the trainer found itself.
        """
        return {"loss": loss, **further}

    def judge(self, step: int, figures: Figures) -> bool:
        """Takes the figures of an evaluation after a step; whether the training shall end."""
        return False

    def end(self, trainer: Measurable) -> None:
        """Measures the result, and compares it with before."""

    def figures(self) -> Figures:
        """What a version's lineage says of before and after, under the names that it has there."""
        return {}

    def report(self) -> str:
        """The version's report as Markdown; "" for none."""
        return ""

    def state(self) -> dict[str, Any]:
        """What a resumed run must know, as JSON's values; restore() takes it."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where state() was taken."""
