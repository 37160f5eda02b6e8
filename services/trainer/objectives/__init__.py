"""Objectives: what the trained parameters are optimized for. One file each; OBJECTIVES is the list of them."""

from __future__ import annotations

from typing import Any

from services.trainer.objectives.base import (
    Objective,
    ObjectiveConfig,
    ObjectiveInfo,
    Prepared,
    Reading,
    Run,
)
from services.trainer.objectives.cpt import Pretraining
from services.trainer.objectives.distillation import Distillation
from services.trainer.objectives.grpo import Grpo
from services.trainer.objectives.sft import Supervised

OBJECTIVES: dict[str, type[Objective[Any]]] = {
    objective.info.kind: objective for objective in (Supervised, Pretraining, Grpo, Distillation)
}

__all__ = [
    "OBJECTIVES",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveInfo",
    "Prepared",
    "Reading",
    "Run",
]
