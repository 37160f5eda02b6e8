"""Distillation: a student learns the distribution of a teacher at every token of the data's answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from graft.errors import GraftError, Reason
from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.fields import invalid_field, number, positive
from services.trainer.formats import Completion, Conversation, Example, PlainText
from services.trainer.objectives.base import (
    Objective,
    ObjectiveConfig,
    ObjectiveInfo,
    Prepared,
    Reading,
    Run,
)

_PATH = "objective.distillation"


@dataclass(frozen=True, slots=True)
class DistillationConfig(ObjectiveConfig):
    """Settings of distillation.

    Args:
        teacher: a folder or hub id.
        beta: 0 for the forward divergence KL(teacher || student), 1 for KL(student || teacher), between
            them the generalized Jensen-Shannon divergence.
        temperature: both models' logits are divided by it.
        sft_weight: of the usual loss on the data, added to the divergence.
    """

    kind: ClassVar[str] = "distillation"
    teacher: str
    beta: float
    temperature: float
    sft_weight: float


class Distillation(Objective[DistillationConfig]):
    """Learns what a teacher thinks of the data's answers; nothing is sampled."""

    info = ObjectiveInfo(
        kind="distillation",
        title="distillation",
        source="Hinton et al. 2015, arXiv:1503.02531; Agarwal et al. 2023, arXiv:2306.13649",
        summary="Brings the model's next-token distribution close to a teacher's on the data's answers.",
        contents=(Conversation, Completion, PlainText),
        needs="conversations, prompts with completions, or texts",
        learning_rate_source="the method's own: the loss is one per token of the data, as in fine-tuning",
        packing=True,
        neftune_note="the teacher reads the text without it, and the student would learn to undo the noise",
    )

    @classmethod
    def parse(cls, message: pb.Distillation) -> DistillationConfig:
        if not message.teacher.strip():
            raise invalid_field(f"{_PATH}.teacher", message.teacher, "a model's folder or a hub id")
        return DistillationConfig(
            teacher=message.teacher,
            beta=number(f"{_PATH}.beta", message.beta, 0.0, 0.0, 1.0),
            temperature=positive(f"{_PATH}.temperature", message.temperature, 1.0, 100.0),
            sft_weight=number(f"{_PATH}.sft_weight", message.sft_weight, 0.0, 0.0, 1000.0),
        )

    def other_bases(self) -> Mapping[str, str]:
        """The teacher."""
        return {f"{_PATH}.teacher": self.config.teacher}

    def prepare(
        self, training: list[Example], held_out: list[Example], reading: Reading
    ) -> Prepared:
        from services.trainer.run.rows import prepare_rows

        limit = self._check_teacher(reading)
        if limit < reading.max_tokens:
            reading.log(f"The teacher reads at most {limit} tokens, so rows are cut there.")
            reading = replace(reading, max_tokens=limit)
        return prepare_rows(training, held_out, reading)

    def _check_teacher(self, reading: Reading) -> int:
        """Checks that the teacher is a model of the student's vocabulary; the longest that it reads."""
        from transformers import AutoConfig

        from services.trainer.tokens import load_tokenizer

        folder = teacher_folder(self.config.teacher)
        try:
            theirs = load_tokenizer(folder).get_vocab()
        except GraftError as error:
            raise not_a_teacher(error) from None
        check_vocabulary(self.config.teacher, theirs, reading.tokenizer.get_vocab())
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        return min(limit or reading.max_tokens, reading.max_tokens)

    def make_trainer(self, run: Run) -> Any:
        from services.trainer.run.trainers.distillation import DistillationTrainer

        return DistillationTrainer(run, self.config)


def teacher_folder(source: str) -> Path:
    """The folder of a teacher.

    Raises:
        GraftError: NOT_A_MODEL.
    """
    from services.trainer.run.bases import find_folder

    try:
        return find_folder(source)
    except GraftError as error:
        raise not_a_teacher(error) from None


def check_vocabulary(teacher: str, theirs: dict[str, int], ours: dict[str, int]) -> None:
    """Checks that every token means the same to teacher and student.

    Raises:
        GraftError: INVALID_SPEC, with both sizes and a token that differs.
    """
    if theirs == ours:
        return
    token = min(
        token for token in theirs.keys() | ours.keys() if theirs.get(token) != ours.get(token)
    )
    raise GraftError(
        Reason.INVALID_SPEC,
        f"The teacher {teacher} has another vocabulary: {len(theirs)} tokens, and the base has {len(ours)}; "
        f"{token!r} is token {theirs.get(token, 'none')} of the teacher and {ours.get(token, 'none')} of the base",
        next_step="Choose a teacher of the base's own family, which has the same tokenizer.",
        field=f"{_PATH}.teacher",
    )


def not_a_teacher(error: GraftError) -> GraftError:
    """The error of a teacher that cannot be loaded."""
    return GraftError(
        Reason.NOT_A_MODEL,
        f"The teacher cannot be used: {error.message}",
        next_step=f"Check {_PATH}.teacher: a folder, or a hub id that this machine can reach.",
        field=f"{_PATH}.teacher",
    )
