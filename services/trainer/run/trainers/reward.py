"""Reward models through TRL's RewardTrainer, on pairs that are tokens already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from services.trainer.objectives.base import Run
from services.trainer.run.trainers.common import training_arguments
from services.trainer.run.trainers.comparing import ComparingTrainer, Row


class RewardModelTrainer(ComparingTrainer, RewardTrainer):  # type: ignore[misc]
    """TRL's trainer; rows have chosen_ids and rejected_ids, each of prompt and answer."""

    figures: ClassVar[Mapping[str, str]] = {
        "accuracy": "accuracy",
        "margin": "margin",
        "mean_reward": "mean_reward",
    }

    def __init__(self, run: Run) -> None:
        self.begin(run)
        self._pairs = DataCollatorForPreference(pad_token_id=run.tokenizer.pad_token_id or 0)
        super().__init__(
            model=run.model,
            args=training_arguments(
                RewardConfig,
                run.spec,
                run.total_steps,
                run.store.unused,
                max_length=None,
                disable_dropout=False,
            ),
            data_collator=self.collator(self._pairs),
            train_dataset=self.dataset(),
            processing_class=run.tokenizer,
            callbacks=[self.callback()],
        )
        self.settle()

    def eval_collator(self, rows: Sequence[Row]) -> Row:
        """A batch of held-out pairs."""
        batch: Row = self._pairs(list(rows))
        return batch
