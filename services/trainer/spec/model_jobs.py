"""Specs of jobs on versions that exist, as far as a trainer looks at them: a worker reads all the rest."""

from __future__ import annotations

from graft.trainer.v1.model_jobs_pb2 import EvaluationSpec, MergeSpec

from services.trainer.fields import identifier, invalid_field
from services.trainer.spec.dataset import DatasetSpec, parse_dataset
from services.trainer.spec.recipe import parse_recipe


def merge_title(spec: MergeSpec) -> str:
    """Refuses what no worker could begin with; returns what the job is called after.

    Raises:
        GraftError: INVALID_SPEC.
    """
    recipe = parse_recipe(spec)
    return recipe.output_adapter or recipe.output_base or "export"


def evaluation_title(spec: EvaluationSpec) -> str:
    """As merge_title()."""
    if not spec.version:
        how = "Write bot:3, bot@production or a full name."
        raise invalid_field("version", spec.version, "the name of a version", how)
    evaluation_rows(spec)
    return identifier("name", spec.name) if spec.name else "evaluation"


def evaluation_rows(spec: EvaluationSpec) -> DatasetSpec | None:
    """The rows that an evaluation names, if it names any. Raises GraftError INVALID_SPEC."""
    return parse_dataset(spec.dataset) if spec.HasField("dataset") else None
