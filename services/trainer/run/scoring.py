"""What a step is worth: the one figure of an evaluation by which checkpoints are ranked."""

from __future__ import annotations

from collections.abc import Mapping

from services.trainer.run.manifests import Score
from services.trainer.spec import JobSpec

_METRIC = "eval_loss"


def score_of(spec: JobSpec, figures: Mapping[str, float]) -> Score | None:
    """The score in the figures of an evaluation; None where they do not hold the metric."""
    value = figures.get(_METRIC)
    return None if value is None else Score(_METRIC, float(value))
