"""What a step is worth: the one figure of an evaluation by which checkpoints are ranked."""

from __future__ import annotations

from collections.abc import Mapping

from services.trainer.run.manifests import Score
from services.trainer.spec import JobSpec

_USUAL = "loss"


def score_of(spec: JobSpec, figures: Mapping[str, float]) -> Score | None:
    """The score in the figures of an evaluation, by evaluation.best_metric; None where they do not hold it."""
    evaluation = getattr(spec, "evaluation", None)
    metric = f"eval_{getattr(evaluation, 'best_metric', '') or _USUAL}"
    value = figures.get(metric)
    if value is None:
        return None
    return Score(metric, float(value), bool(getattr(evaluation, "best_is_highest", False)))
