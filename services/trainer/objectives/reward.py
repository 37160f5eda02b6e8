"""Reward models: one number per answer, higher for the chosen one (Bradley and Terry 1952)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from graft.trainer.v1 import job_spec_pb2 as pb

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

if TYPE_CHECKING:
    from services.trainer.spec import BaseSpec

_NO_HEAD = "its result has no place for the trained head that gives the number; method lora works"
_WITHOUT_HEAD = (
    "full",
    "pissa",
    "adalora",
    "ia3",
    "prompt_tuning",
    "p_tuning",
    "p_tuning_v2",
    "prefix_tuning",
    "bottleneck",
)


@dataclass(frozen=True, slots=True)
class RewardModelConfig(ObjectiveConfig):
    """A reward model has no settings of its own."""

    kind: ClassVar[str] = "reward"


class RewardModel(Objective[RewardModelConfig]):
    """Learns to score answers; the head that gives the score is trained and saved with the adapter."""

    info = ObjectiveInfo(
        kind="reward",
        title="reward modelling",
        source="Ouyang et al. 2022, arXiv:2203.02155",
        summary="Learns one number per answer, higher for chosen answers than for rejected ones.",
        contents=(Preference,),
        needs=NEEDS_PAIRS,
        adapter_learning_rate=1e-4,
        learning_rate_source="TRL's default for reward models: 1e-4",
        refused_methods=dict.fromkeys(_WITHOUT_HEAD, _NO_HEAD),
        task_type="SEQ_CLS",
    )

    @classmethod
    def parse(cls, message: pb.RewardModel) -> RewardModelConfig:
        return RewardModelConfig()

    def load_model(self, folder: Path, base: BaseSpec) -> Any:
        from services.trainer.run.models import load_scorer

        return load_scorer(folder, base)

    def prepare(
        self, training: list[Example], held_out: list[Example], reading: Reading
    ) -> Prepared:
        from services.trainer.run.pairs import prepare_pairs

        return prepare_pairs(training, held_out, reading, whole=True)

    def make_trainer(self, run: Run) -> Any:
        from services.trainer.run.trainers.reward import RewardModelTrainer

        # The score is read at the last token that is not padding.
        run.model.config.pad_token_id = run.tokenizer.pad_token_id or 0
        return RewardModelTrainer(run)
