"""A job's losses as a picture in a PNG file, through matplotlib, which is asked for only here."""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft.errors import GraftError, Reason
from graft.results import JobEvent

_SIZE_INCHES, _DOTS_PER_INCH = (8.0, 4.5), 120


@dataclass(slots=True)
class Curves:
    """What a job reported, by its step: of a step that was done again, the last report."""

    loss: dict[int, float] = field(default_factory=dict)
    eval_loss: dict[int, float] = field(default_factory=dict)

    def add(self, event: JobEvent) -> int:
        """Takes an event; returns the step that it is of, 0 where it has no figures."""
        metrics = event.metrics
        if metrics is None:
            return 0
        self.loss[metrics.step] = metrics.loss
        if metrics.eval_loss is not None:
            self.eval_loss[metrics.step] = metrics.eval_loss
        return metrics.step


async def collect(events: AsyncIterable[JobEvent], last_step: int | None) -> Curves:
    """The curves of a job's events, all of them or as far as a step."""
    curves = Curves()
    async for event in events:
        if last_step is not None and curves.add(event) >= last_step:
            break
        if last_step is None:
            curves.add(event)
    return curves


def save_picture(curves: Curves, title: str, path: Path) -> None:
    """Draws the losses over the steps.

    Args:
        path: a .png file, which is replaced.

    Raises:
        GraftError: INVALID_REQUEST, without matplotlib, or for a file of another kind or place.
    """
    if path.suffix.lower() != ".png":
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"{path} does not end in .png",
            next_step="Name a .png file, for example -o loss.png.",
        )
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise GraftError(
            Reason.INVALID_REQUEST,
            "A picture needs the Python package matplotlib, which is not installed",
            next_step="Run `pip install 'graft-adapters[plots]'`, or leave -o out for a curve in the terminal.",
        ) from None
    figure = Figure(figsize=_SIZE_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    _draw(figure.add_subplot(), curves, title)
    try:
        figure.savefig(path, format="png", metadata={"Software": "graft"})
    except OSError as error:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"{path} cannot be written ({error.strerror})",
            next_step="Name a file in a folder that exists.",
        ) from None


def _draw(axes: Any, curves: Curves, title: str) -> None:
    _line(axes, curves.loss, "training", linewidth=1.2)
    # Few and far between: each is a point.
    _line(axes, curves.eval_loss, "held out", marker="o", markersize=4)
    axes.set(title=title, xlabel="step", ylabel="loss")
    axes.grid(visible=True, alpha=0.3)
    if curves.eval_loss:
        axes.legend()


def _line(axes: Any, points: Mapping[int, float], label: str, **style: Any) -> None:
    steps = sorted(step for step, value in points.items() if math.isfinite(value))
    if steps:
        axes.plot(steps, [points[step] for step in steps], label=label, **style)
