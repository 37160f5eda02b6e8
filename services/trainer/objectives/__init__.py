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
from services.trainer.objectives.dpo import Dpo
from services.trainer.objectives.grpo import Grpo
from services.trainer.objectives.kto import Kto
from services.trainer.objectives.orpo import Orpo
from services.trainer.objectives.reward import RewardModel
from services.trainer.objectives.sft import Supervised

_ALL: tuple[type[Objective[Any]], ...] = (
    Supervised,
    Pretraining,
    Dpo,
    Kto,
    Orpo,
    Grpo,
    RewardModel,
    Distillation,
)
OBJECTIVES: dict[str, type[Objective[Any]]] = {objective.info.kind: objective for objective in _ALL}

__all__ = [
    "OBJECTIVES",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveInfo",
    "Prepared",
    "Reading",
    "Run",
]
