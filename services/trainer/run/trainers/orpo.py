"""ORPO: the loss on the chosen answer and TRL's odds ratio, on pairs that are tokens already.

TRL's own ORPOTrainer is experimental and tokenizes by itself; its loss function is used, not its loop.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments
from trl.trainer.dpo_trainer import DataCollatorForPreference

from services.trainer.objectives.base import Run
from services.trainer.objectives.orpo import OrpoConfig
from services.trainer.run.trainers.common import training_arguments
from services.trainer.run.trainers.comparing import ComparingTrainer, Row

# The largest mean log-probability that odds are taken of.
_LIKELIEST = -1e-6


class _OddsRatio(Trainer):  # type: ignore[misc]
    """Trainer with ORPO's loss (Hong et al. 2024, equations 4 to 7)."""

    # See ComparingTrainer.
    token_weight = 1.0

    def __init__(self, beta: float, **options: Any) -> None:
        super().__init__(**options)
        self.beta = beta
        self._metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}

    def compute_loss(self, model: Any, inputs: Row, *_: Any, **__: Any) -> torch.Tensor:
        """Mean cross-entropy of the chosen rows' tokens, less beta times the mean log-sigmoid of the log odds ratio."""
        from trl.experimental.orpo import ORPOTrainer

        ids, mask, answers = (
            inputs[name] for name in ("input_ids", "attention_mask", "completion_mask")
        )
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        logits = logits[:, -ids.shape[1] :][:, :-1].float()
        per_token = -cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        pairs = len(ids) // 2
        # At a probability of 1 the odds are infinite, and their gradient is not a number.
        means = _mean(per_token, answers[:, 1:]).clamp(max=_LIKELIEST)
        losses, *_rest, log_odds = ORPOTrainer.odds_ratio_loss(self, means[:pairs], means[pairs:])
        # As TRL and the authors' code: the chosen row's loss is of prompt and answer.
        everything = mask[:pairs, 1:]
        nll = -(per_token[:pairs] * everything).sum() / everything.sum()
        weighed = nll * self.token_weight
        noted = self._metrics["train"]
        noted["accuracy"].append(float((means[:pairs] > means[pairs:]).float().mean()))
        noted["log_odds"].append(float(log_odds.detach()))
        noted["nll"].append(float(nll.detach()))
        loss: torch.Tensor = weighed - losses.mean()
        return loss


class OrpoTrainer(ComparingTrainer, _OddsRatio):
    """Rows have prompt_ids, chosen_ids and rejected_ids."""

    figures: ClassVar[Mapping[str, str]] = {
        "accuracy": "accuracy",
        "log_odds": "log_odds_ratio",
        "nll": "sft_loss",
    }

    def __init__(self, run: Run, config: OrpoConfig) -> None:
        self.begin(run)
        self._pairs = DataCollatorForPreference(pad_token_id=run.tokenizer.pad_token_id or 0)
        super().__init__(
            beta=config.beta,
            model=run.model,
            args=training_arguments(TrainingArguments, run.spec, run.total_steps, run.store.unused),
            data_collator=self.collator(self._pairs),
            train_dataset=self.dataset(),
            processing_class=run.tokenizer,
            callbacks=[self.callback()],
        )
        # The loss is a mean over pairs, so the loop divides it by the accumulation's steps.
        self.model_accepts_loss_kwargs = False
        self.settle()

    def supervised_tokens(self, inputs: Row) -> int:
        """Tokens that the chosen rows' cross-entropy is a mean over."""
        mask = inputs["attention_mask"]
        return int(mask[: len(mask) // 2, 1:].sum())

    def eval_collator(self, rows: Sequence[Row]) -> Row:
        """A batch of held-out pairs."""
        batch: Row = self._pairs(list(rows))
        return batch


def _mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Means of the rows of values where the mask is 1; shape (rows,)."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)
