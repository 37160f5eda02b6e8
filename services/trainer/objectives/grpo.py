"""Group relative policy optimization: answers of the model's own, rewarded, through TRL's GRPOTrainer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.fields import integer, invalid_field, number, optional_integer, positive
from services.trainer.formats import Completion, Conversation, Example, Prompt
from services.trainer.formats.base import bad_row
from services.trainer.objectives.base import (
    Objective,
    ObjectiveConfig,
    ObjectiveInfo,
    Prepared,
    Reading,
    Run,
)
from services.trainer.rewards.base import WeightedReward

if TYPE_CHECKING:
    from services.trainer.spec import JobSpec
    from services.trainer.tokens.prompts import PromptRow

_PATH = "objective.grpo"
_MOST_GENERATIONS = 1024
_MOST_TOKENS = 1_000_000


@dataclass(frozen=True, slots=True)
class GrpoConfig(ObjectiveConfig):
    """Settings of GRPO. beta 0: no divergence from the base is counted."""

    kind: ClassVar[str] = "grpo"
    rewards: tuple[WeightedReward, ...]
    generations: int
    max_completion_tokens: int
    beta: float
    temperature: float


class Grpo(Objective[GrpoConfig]):
    """Learns from its own answers: those that are rewarded above the mean of their prompt."""

    info = ObjectiveInfo(
        kind="grpo",
        title="GRPO",
        source="Shao et al. 2024, arXiv:2402.03300",
        summary="Samples several answers to each prompt and makes those likelier that are rewarded more.",
        contents=(Prompt, Completion, Conversation),
        needs="prompts, prompts with completions, or conversations",
        adapter_learning_rate=1e-5,
        full_learning_rate=1e-6,
        several_processes=False,
        learning_rate_source="TRL's default: 1e-6; ours with an adapter: ten times that, as in TRL's script for DPO",
        neftune_note="answers are sampled without it, and would be judged by another model than gave them",
    )

    @classmethod
    def parse(cls, message: pb.Grpo) -> GrpoConfig:
        # Here, because the libraries of patterns and schemas are the trainer's alone.
        from services.trainer.rewards.build import build_rewards

        path = f"{_PATH}.max_completion_tokens"
        most = integer(path, message.max_completion_tokens, 256, 1, _MOST_TOKENS)
        return GrpoConfig(
            rewards=build_rewards(f"{_PATH}.rewards", message.rewards, most),
            generations=_generations(message),
            max_completion_tokens=most,
            beta=number(f"{_PATH}.beta", message.beta, 0.0, 0.0, 100.0),
            temperature=positive(f"{_PATH}.temperature", message.temperature, 1.0, 10.0),
        )

    @classmethod
    def check(cls, config: GrpoConfig, spec: JobSpec) -> None:
        hyper = spec.hyperparameters
        if config.max_completion_tokens >= hyper.max_length_tokens:
            raise invalid_field(
                f"{_PATH}.max_completion_tokens",
                config.max_completion_tokens,
                f"below hyperparameters.max_length_tokens ({hyper.max_length_tokens}), which prompt and "
                "answer share",
            )
        if spec.dataset.loss_on != "assistant":
            raise invalid_field(
                "dataset.loss_on",
                spec.dataset.loss_on,
                "left out, because no part of the rows is learned",
            )
        _check_groups(hyper.micro_batch_size, hyper.gradient_accumulation_steps, config.generations)

    def prepare(
        self, training: list[Example], held_out: list[Example], reading: Reading
    ) -> Prepared:
        rows = self._read(training, reading)
        return Prepared(
            train=rows,
            evaluation=self._read(held_out, reading) if held_out else None,
            rows=len(rows),
            sequences=len(rows) * self.config.generations,
        )

    def _read(self, examples: list[Example], reading: Reading) -> list[PromptRow]:
        from services.trainer.tokens.prompts import PromptTokenizer

        cleaning = reading.spec.dataset.cleaning
        room = reading.max_tokens - self.config.max_completion_tokens
        if room < 1:
            raise invalid_field(
                f"{_PATH}.max_completion_tokens",
                self.config.max_completion_tokens,
                f"below {reading.max_tokens}, the longest that the base reads, prompt and answer together",
            )
        reader = PromptTokenizer(
            reading.tokenizer, room, cleaning.min_length_tokens, cleaning.max_length_tokens
        )
        rows, left_out = reader.tokenize(examples)
        reading.log(f"{len(rows)} prompts of {sum(len(row.ids) for row in rows)} tokens.")
        for why, places in left_out.items():
            reading.log(f"{len(places)} rows are left out because {why} ({places}).")
        self._check_answers(rows)
        return rows

    def _check_answers(self, rows: list[PromptRow]) -> None:
        for one in self.config.rewards:
            unanswered = [row for row in rows if row.answer is None]
            if one.reward.needs_answer and unanswered:
                raise bad_row(
                    unanswered[0].place,
                    f"it has no answer, which {one.reward.name} compares with "
                    f"({len(unanswered)} rows have none)",
                    'Add the field "answer" to the rows, or use another reward function.',
                    "answer",
                )

    def make_trainer(self, run: Run) -> Any:
        from services.trainer.run.trainers.grpo import GrpoTrainer

        return GrpoTrainer(run, self.config)


def _generations(message: pb.Grpo) -> int:
    path = f"{_PATH}.generations"
    chosen = optional_integer(message, "generations", path, 8, 1, _MOST_GENERATIONS)
    if chosen == 1:
        raise invalid_field(
            path,
            chosen,
            f"2 to {_MOST_GENERATIONS}",
            "Sample at least two answers per prompt: each is judged by the others' mean.",
        )
    return chosen


def _check_groups(micro_batch: int, accumulation: int, generations: int) -> None:
    """All answers to a prompt must be in one optimizer step."""
    if micro_batch * accumulation % generations == 0:
        return
    step = generations // math.gcd(micro_batch, generations)
    steps = math.ceil(accumulation / step) * step
    raise invalid_field(
        "hyperparameters.micro_batch_size",
        micro_batch,
        f"so that times gradient_accumulation_steps ({accumulation}) it is a multiple of "
        f"{_PATH}.generations ({generations})",
        f"Set gradient_accumulation_steps to {steps}, micro_batch_size to {generations}, or generations to "
        f"{micro_batch * accumulation if micro_batch * accumulation > 1 else 2}.",
    )
