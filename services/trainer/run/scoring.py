"""What a step is worth: the one figure of an evaluation by which checkpoints are ranked."""

from __future__ import annotations

from collections.abc import Mapping

from services.trainer.run.manifests import Score
from services.trainer.spec import JobSpec
from services.trainer.spec.figures import higher_is_better


def score_of(spec: JobSpec, figures: Mapping[str, float]) -> Score | None:
    """The score in the figures of an evaluation; None where they do not hold the metric."""
    evaluation = spec.evaluation
    metric = f"eval_{evaluation.best_metric or 'loss'}"
    value = figures.get(metric)
    higher = higher_is_better(evaluation.best_metric or "loss")
    return None if value is None else Score(metric, float(value), higher)
