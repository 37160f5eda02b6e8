"""GRPO through TRL's GRPOTrainer, on prompts that are tokens already, with our rewards and our order of prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from services.trainer.objectives.base import Run
from services.trainer.objectives.grpo import GrpoConfig
from services.trainer.rewards.base import Completion, Reward
from services.trainer.run.memory import SAMPLING, out_of_memory_words, what_helps
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


# What torch says when it shall draw from numbers that are none.
_NOT_FINITE = "probability tensor contains"
_MOST_TOKENS = "objective.grpo.max_completion_tokens"


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
                run.store.unused,
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
        """Sampled answers to prompts, in smaller parts when memory runs out; each answer is a prompt's own."""
        prompts, *rest = arguments
        begun = torch.get_rng_state()
        while True:
            try:
                found, why = out_of_memory_words(lambda: self._sample(prompts, rest, named))
            except RuntimeError as error:
                if _NOT_FINITE not in str(error):
                    raise
                raise self._diverged("What the model says", (), self._has_logits) from None
            if not why:
                return found
            torch.set_rng_state(begun)
            where = f"while sampling answers in step {self.state.global_step + 1}"
            advice = f"Lower {_MOST_TOKENS}; {what_helps(self.graft_run.spec)}"
            self.in_pieces.halve(SAMPLING, where, why, advice, len(prompts))

    def _sample(self, prompts: Any, rest: Any, named: Any) -> tuple[list[Any], Any]:
        ids: list[Any] = []
        with without_dropout(self.model):
            for part in self.in_pieces.cut(prompts, SAMPLING):
                ids += super()._generate_single_turn(list(part), *rest, **named)[0]
        return ids, None

    def pieces(self, batch: Any) -> Iterator[Any]:
        """A part of the step's answers, whose groups were compared already: they may be learned from apart."""
        self.model.train()
        answers = GRPOTrainer._prepare_inputs(self, batch)
        count, size = len(answers["prompt_ids"]), self.in_pieces.size()
        for start in range(0, count, size):
            yield {
                name: value[start : start + size] if _is_per_answer(value, count) else value
                for name, value in answers.items()
            }

    def _prepare_inputs(self, batch: Any) -> Any:
        # A piece is prepared already.
        return batch if isinstance(batch, dict) else super()._prepare_inputs(batch)

    def forward_backward(self, model: Any, piece: Any, num_items: Any) -> Any:
        """One forward and backward pass; TRL counts batches where it does it, and these are pieces of one."""
        return Trainer.training_step(self, model, piece, num_items)

    def learn(self, model: Any, batch: Any, num_items: Any) -> Any:
        """Forward and backward passes of a part of the step's answers."""
        loss = super().learn(model, batch, num_items)
        self._step += 1
        return loss

    def mark(self) -> Any:
        """Before a step: nothing of it is counted, and it samples its answers first."""
        noted = {name: len(all_) for name, all_ in self._metrics["train"].items()}
        return super().mark(), self._step, noted

    def go_back(self, mark: Any) -> None:
        """Puts back what mark() gave: the same answers are sampled again."""
        usual, self._step, noted = mark
        super().go_back(usual)
        for name, all_ in self._metrics["train"].items():
            del all_[noted.get(name, 0) :]

    def source_of(self, batch: Any) -> Sequence[PromptRow]:
        """The prompts of a batch, each once."""
        return [self._rows[row] for row in dict.fromkeys(one["prompt"] for one in batch)]

    def _diverged(self, what: str, items: Any, is_fine: Any) -> Exception:
        # An answer is no row: of the step's prompts those are named that the model cannot go on from, else all.
        rows = [row for batch in self._graft_step.batches for row in self.source_of(batch)]
        return super()._diverged(
            what, list({row.place: row for row in rows}.values()), self._has_logits
        )

    @torch.no_grad()
    def _has_logits(self, row: PromptRow) -> bool:
        ids = torch.tensor([row.ids], device=self.args.device)
        with without_dropout(self.model), self.accelerator.autocast():
            return bool(torch.isfinite(self.model(input_ids=ids).logits).all())

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
        size = self.evaluation_batch_size
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


def _is_per_answer(value: Any, answers: int) -> bool:
    return isinstance(value, (torch.Tensor, list)) and (
        len(value) == answers
        if isinstance(value, list)
        else value.ndim > 0 and len(value) == answers
    )
