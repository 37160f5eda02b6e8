"""Direct preference optimization: the chosen answer becomes likelier than the rejected one, held against the base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.fields import choice, number, positive
from services.trainer.formats import Example, Preference
from services.trainer.objectives.base import (
    Objective,
    ObjectiveConfig,
    ObjectiveInfo,
    Prepared,
    Reading,
    Run,
)

if TYPE_CHECKING:
    from services.trainer.spec import BaseSpec

_PATH = "objective.dpo"
_LOSSES = ("sigmoid", "ipo", "hinge", "robust")
NEEDS_PAIRS = "preferences: chosen and rejected answers to the same prompt"
TWO_ADAPTERS = (
    "the library keeps a second adapter as the reference, and AdaLoRA allows one; method lora works"
)


@dataclass(frozen=True, slots=True)
class DpoConfig(ObjectiveConfig):
    """DPO's strength, loss, and the weight of the usual loss on the chosen answers."""

    kind: ClassVar[str] = "dpo"
    beta: float
    loss: str
    sft_weight: float


class Dpo(Objective[DpoConfig]):
    """Learns from pairs without a reward model."""

    info = ObjectiveInfo(
        kind="dpo",
        title="direct preference optimization",
        source="Rafailov et al. 2023, arXiv:2305.18290",
        summary="Makes chosen answers likelier than rejected ones, without moving far from the base.",
        contents=(Preference,),
        needs=NEEDS_PAIRS,
        adapter_learning_rate=5e-6,
        full_learning_rate=5e-7,
        learning_rate_source="TRL's script: 5e-7 for all parameters, ten times that with LoRA",
        refused_methods={"adalora": TWO_ADAPTERS},
        neftune_note="the reference would be given noise, too, and what is learned is the difference",
    )

    @classmethod
    def parse(cls, message: pb.Dpo) -> DpoConfig:
        return DpoConfig(
            beta=positive(f"{_PATH}.beta", message.beta, 0.1, 1000.0),
            loss=choice(f"{_PATH}.loss", message.loss, _LOSSES),
            sft_weight=number(f"{_PATH}.sft_weight", message.sft_weight, 0.0, 0.0, 1000.0),
        )

    def load_model(self, folder: Path, base: BaseSpec) -> Any:
        from services.trainer.run.dropout import without_own_dropout

        return without_own_dropout(super().load_model(folder, base))

    def prepare(
        self, training: list[Example], held_out: list[Example], reading: Reading
    ) -> Prepared:
        from services.trainer.run.pairs import prepare_pairs

        return prepare_pairs(training, held_out, reading)

    def make_trainer(self, run: Run) -> Any:
        from services.trainer.run.trainers.dpo import DpoTrainer

        return DpoTrainer(run, self.config)
