"""Supervised fine-tuning: answers to prompts, through TRL's SFTTrainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.formats import Completion, Conversation, Example, PlainText
from services.trainer.objectives.base import (
    Objective,
    ObjectiveConfig,
    ObjectiveInfo,
    Prepared,
    Reading,
    Run,
)


@dataclass(frozen=True, slots=True)
class SupervisedConfig(ObjectiveConfig):
    """Supervised fine-tuning has no settings of its own."""

    kind: ClassVar[str] = "sft"


class Supervised(Objective[SupervisedConfig]):
    """Learns the assistant's turns, or the completion, or all of a text."""

    info = ObjectiveInfo(
        kind="sft",
        title="supervised fine-tuning",
        source="Wei et al. 2021, arXiv:2109.01652",
        summary="Learns the answers of conversations, completions of prompts, or texts.",
        contents=(Conversation, Completion, PlainText),
        needs="conversations, prompts with completions, or texts",
        packing=True,
        streaming=True,
    )

    @classmethod
    def parse(cls, message: pb.Supervised) -> SupervisedConfig:
        return SupervisedConfig()

    def prepare(
        self, training: list[Example], held_out: list[Example], reading: Reading
    ) -> Prepared:
        from services.trainer.run.rows import prepare_rows

        return prepare_rows(training, held_out, reading)

    def make_trainer(self, run: Run) -> Any:
        from services.trainer.run.trainers.sft import SupervisedTrainer

        return SupervisedTrainer(run)
