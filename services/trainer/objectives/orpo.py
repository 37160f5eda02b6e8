"""Odds ratio preference optimization: fine-tuning and preference in one loss, without a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.fields import positive
from services.trainer.formats import Example, Preference
from services.trainer.objectives.base import (
    Objective,
    ObjectiveConfig,
    ObjectiveInfo,
    Prepared,
    Reading,
    Run,
)
from services.trainer.objectives.dpo import NEEDS_PAIRS


@dataclass(frozen=True, slots=True)
class OrpoConfig(ObjectiveConfig):
    """The weight of the odds ratio."""

    kind: ClassVar[str] = "orpo"
    beta: float


class Orpo(Objective[OrpoConfig]):
    """Learns the chosen answers, and to prefer them to the rejected ones."""

    info = ObjectiveInfo(
        kind="orpo",
        title="odds ratio preference optimization",
        source="Hong et al. 2024, arXiv:2403.07691",
        summary="Fine-tunes on chosen answers and lowers the odds of rejected ones, without a reference.",
        contents=(Preference,),
        needs=NEEDS_PAIRS,
        adapter_learning_rate=8e-5,
        full_learning_rate=8e-6,
        learning_rate_source="TRL's example: 8e-6 for all parameters, ten times that with LoRA",
    )

    @classmethod
    def parse(cls, message: pb.Orpo) -> OrpoConfig:
        return OrpoConfig(positive("objective.orpo.beta", message.beta, 0.1, 1000.0))

    def prepare(
        self, training: list[Example], held_out: list[Example], reading: Reading
    ) -> Prepared:
        from services.trainer.run.pairs import prepare_pairs

        return prepare_pairs(training, held_out, reading)

    def make_trainer(self, run: Run) -> Any:
        from services.trainer.run.trainers.orpo import OrpoTrainer

        return OrpoTrainer(run, self.config)
