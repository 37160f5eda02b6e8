"""GRPO through TRL's GRPOTrainer, on prompts that are tokens already, with our rewards and our order of prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from services.trainer.objectives.base import Run
from services.trainer.objectives.grpo import GrpoConfig
from services.trainer.rewards.base import Completion, Reward
from services.trainer.run.trainers.common import (
    GraftTrainer,
    training_arguments,
    without_dropout,
)
from services.trainer.run.trainers.group_order import GroupOrder
from services.trainer.run.trainers.reference import base_is_below
from services.trainer.tokens.prompts import PromptRow

# TRL's names of what is reported, and ours.
_FIGURES = {
    "reward": "reward",
    "reward_std": "reward_std",
    "kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "completion_tokens",
    "completions/clipped_ratio": "unfinished_completions",
    "frac_reward_zero_std": "prompts_without_signal",
}


class GrpoTrainer(GraftTrainer, GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer; run.prepared holds lists of PromptRow.

    The dataset's column "prompt" holds the numbers of rows; their tokens are looked up, so that nothing
    renders a prompt but what also renders it when it is served.
    """

    def __init__(self, run: Run, config: GrpoConfig) -> None:
        self.begin(run)
        self._config = config
        self._rows: Sequence[PromptRow] = run.prepared.train
        hyper = run.spec.hyperparameters
        answers_per_step = hyper.micro_batch_size * hyper.gradient_accumulation_steps
        self._order = GroupOrder(
            len(self._rows),
            answers_per_step // config.generations,
            config.generations,
            hyper.gradient_accumulation_steps,
            run.spec.seed,
        )
        super().__init__(
            model=run.model,
            reward_funcs=self._reward_functions(),
            args=training_arguments(
                GRPOConfig,
                run.spec,
                run.total_steps,
                run.store.partial,
                num_generations=config.generations,
                max_completion_length=config.max_completion_tokens,
                temperature=config.temperature,
                reward_weights=[one.weight for one in config.rewards],
                beta=0.0,  # See _take_reference().
            ),
            train_dataset=Dataset.from_dict({"prompt": list(range(len(self._rows)))}),
            processing_class=run.tokenizer,
            callbacks=[self.callback()],
        )
        if config.beta:
            self._take_reference(config.beta)
        self.settle()

    def _take_reference(self, beta: float) -> None:
        """The base as the reference: the adapter turned off, or a copy where that is not the base.

        TRL would copy the adapter as it begins, which costs another adapter and is the same.
        """
        self.beta = beta
        run = self.graft_run
        if base_is_below(run):
            return
        reference = run.load_base(run.spec.base)
        reference.requires_grad_(False)
        add_fused_lm_head(reference, temperature=self.temperature)
        self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)

    def begin_epoch(self, epoch: int) -> None:
        """Sets the order of prompts to that of an epoch, from 0."""
        self._order.begin_epoch(epoch)

    def _get_train_sampler(self, *_: Any) -> GroupOrder:
        return self._order

    def _tokenize_prompts(self, prompts: list[int]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self._rows[row].ids for row in prompts], None, {}

    def _generate_single_turn(self, *arguments: Any, **named: Any) -> Any:
        with without_dropout(self.model):
            return super()._generate_single_turn(*arguments, **named)

    def _reward_functions(self) -> list[Callable[..., list[float]]]:
        kinds = Counter(one.reward.name for one in self._config.rewards)
        functions = []
        for index, one in enumerate(self._config.rewards):
            kind = one.reward.name
            name = kind if kinds[kind] == 1 else f"{kind}_{index}"
            functions.append(self._reward_function(one.reward, name))
        return functions

    def _reward_function(self, reward: Reward, name: str) -> Callable[..., list[float]]:
        def score(
            prompts: list[int], completions: list[str], completion_ids: list[list[int]], **_: Any
        ) -> list[float]:
            answers = [self._rows[row].answer for row in prompts]
            return reward.score(self._written(completions, completion_ids), answers)

        score.__name__ = name
        return score

    def _written(self, texts: list[str], ids: list[list[int]]) -> list[Completion]:
        ends = set(self.eos_token_ids)
        return [
            Completion(text, len(tokens) - (bool(tokens) and tokens[-1] in ends))
            for text, tokens in zip(texts, ids, strict=True)
        ]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """TRL's loss of a part of the step's answers."""
        loss: torch.Tensor = super().compute_loss(model, inputs, return_outputs)
        answer_tokens = int(inputs["num_items_in_batch"])
        learned = int(inputs["completion_mask"].sum())
        self.graft_run.progress.add_batch(
            self.check_loss(loss) * answer_tokens,
            learned,
            learned + int(inputs["prompt_mask"].sum()),
        )
        return loss

    def after_step(self, step: int) -> None:
        """Takes the step's figures out of TRL, whose counts are in no checkpoint."""
        super().after_step(step)
        self.graft_run.progress.add_figures(self._figures())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Reports a step's figures, rewards among them."""
        self._metrics["train"].clear()
        super().log(logs, start_time)

    def _figures(self) -> dict[str, float]:
        """Means of what TRL noted since the step before."""
        metrics = self._metrics["train"]
        names = dict(_FIGURES)
        if len(self.reward_func_names) > 1:
            names |= {f"rewards/{name}/mean": f"reward_{name}" for name in self.reward_func_names}
        found = {ours: fmean(metrics[theirs]) for theirs, ours in names.items() if metrics[theirs]}
        metrics.clear()
        return found

    @torch.no_grad()
    def held_out(self) -> tuple[float, Mapping[str, float]]:
        """The mean reward of one sampled answer to each held-out prompt; its negative is the loss."""
        rows = self.graft_run.prepared.evaluation
        assert rows is not None
        rewards: list[float] = []
        size = self.graft_run.spec.hyperparameters.micro_batch_size
        # The caller puts back the generators' states, so that the training's own sampling goes on as before.
        torch.manual_seed(self.graft_run.spec.seed)
        for start in range(0, len(rows), size):
            rewards += self._sampled_rewards(rows[start : start + size])
        reward = fmean(rewards)
        return -reward, {"reward": reward}

    def _sampled_rewards(self, rows: Sequence[PromptRow]) -> list[float]:
        ids, _ = self._generate_single_turn([row.ids for row in rows], None, {}, 1)
        texts = self.processing_class.batch_decode(ids, skip_special_tokens=True)
        written = self._written(texts, ids)
        answers = [row.answer for row in rows]
        totals = [0.0] * len(rows)
        for one in self._config.rewards:
            scores = one.reward.score(written, answers)
            totals = [
                total + one.weight * score for total, score in zip(totals, scores, strict=True)
            ]
        return totals
