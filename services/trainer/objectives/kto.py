"""Kahneman-Tversky optimization: learns from answers that are each good or bad, without pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from graft.errors import GraftError, Reason
from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.fields import invalid_field, positive
from services.trainer.formats import Example, Labelled
from services.trainer.objectives.base import (
    Objective,
    ObjectiveConfig,
    ObjectiveInfo,
    Prepared,
    Reading,
    Run,
)
from services.trainer.objectives.dpo import TWO_ADAPTERS

if TYPE_CHECKING:
    from services.trainer.spec import BaseSpec, JobSpec

_PATH = "objective.kto"


@dataclass(frozen=True, slots=True)
class KtoConfig(ObjectiveConfig):
    """KTO's strength, and the weights of good and bad answers."""

    kind: ClassVar[str] = "kto"
    beta: float
    desirable_weight: float
    undesirable_weight: float


class Kto(Objective[KtoConfig]):
    """Learns from labels."""

    info = ObjectiveInfo(
        kind="kto",
        title="Kahneman-Tversky optimization",
        source="Ethayarajh et al. 2024, arXiv:2402.01306",
        summary="Makes good answers likelier and bad ones less likely, each weighed against the base.",
        contents=(Labelled,),
        needs="answers with a label that says whether they are good",
        adapter_learning_rate=5e-6,
        full_learning_rate=5e-7,
        learning_rate_source="TRL's script: 5e-7; ours with an adapter: ten times that, as TRL's script for DPO has it",
        refused_methods={"adalora": TWO_ADAPTERS},
        neftune_note="the reference would be given noise, too, and what is learned is the difference",
    )

    @classmethod
    def parse(cls, message: pb.Kto) -> KtoConfig:
        return KtoConfig(
            beta=positive(f"{_PATH}.beta", message.beta, 0.1, 1000.0),
            desirable_weight=positive(
                f"{_PATH}.desirable_weight", message.desirable_weight, 1.0, 1000.0
            ),
            undesirable_weight=positive(
                f"{_PATH}.undesirable_weight", message.undesirable_weight, 1.0, 1000.0
            ),
        )

    @classmethod
    def check(cls, config: KtoConfig, spec: JobSpec) -> None:
        if spec.hyperparameters.micro_batch_size < 2:
            raise invalid_field(
                "hyperparameters.micro_batch_size",
                spec.hyperparameters.micro_batch_size,
                "at least 2 with KTO, which estimates the divergence from a batch's other answers",
            )

    def load_model(self, folder: Path, base: BaseSpec) -> Any:
        from services.trainer.run.dropout import without_own_dropout

        return without_own_dropout(super().load_model(folder, base))

    def prepare(
        self, training: list[Example], held_out: list[Example], reading: Reading
    ) -> Prepared:
        from services.trainer.run.pairs import prepare_labelled

        prepared = prepare_labelled(training, held_out, reading)
        good = sum(row["label"] for row in prepared.train)
        if good in (0, len(prepared.train)):
            kind, missing = ("bad", "good") if good == 0 else ("good", "bad")
            raise GraftError(
                Reason.BAD_DATA,
                f"All {len(prepared.train)} rows are {kind} answers, and KTO learns from both",
                next_step=f"Add {missing} answers (label {str(missing == 'good').lower()}), or use objective sft "
                "with good answers alone.",
            )
        return prepared

    def make_trainer(self, run: Run) -> Any:
        from services.trainer.run.trainers.kto import KtoTrainer

        return KtoTrainer(run, self.config)
