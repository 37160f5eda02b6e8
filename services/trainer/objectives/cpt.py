"""Continual pre-training: raw text, all of it learned, through TRL's SFTTrainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.formats import Example, PlainText
from services.trainer.objectives.base import (
    Objective,
    ObjectiveConfig,
    ObjectiveInfo,
    Prepared,
    Reading,
    Run,
)


@dataclass(frozen=True, slots=True)
class PretrainingConfig(ObjectiveConfig):
    """Continual pre-training has no settings of its own."""

    kind: ClassVar[str] = "cpt"


class Pretraining(Objective[PretrainingConfig]):
    """Learns every token of texts; long ones are split into rows, and rows are packed."""

    info = ObjectiveInfo(
        kind="cpt",
        title="continual pre-training",
        source="Gururangan et al. 2020, arXiv:2004.10964",
        summary="Learns every token of raw text; texts too long for one sequence are split, not cut.",
        contents=(PlainText,),
        needs='raw text: rows with "text", or another column named so by dataset.columns (to learn all of '
        "conversations or completions, use objective sft with dataset.loss_on everything)",
        packing=True,
        packs_by_default=True,
        streaming=True,
    )

    @classmethod
    def parse(cls, message: pb.Pretraining) -> PretrainingConfig:
        return PretrainingConfig()

    def prepare(
        self, training: list[Example], held_out: list[Example], reading: Reading
    ) -> Prepared:
        from services.trainer.run.rows import document_tokenizer, prepare_rows

        return prepare_rows(training, held_out, reading, document_tokenizer(reading))

    def make_trainer(self, run: Run) -> Any:
        from services.trainer.run.trainers.sft import SupervisedTrainer

        return SupervisedTrainer(run)
