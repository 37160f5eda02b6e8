"""KTO through TRL's KTOTrainer, on labelled answers that are tokens already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from services.trainer.objectives.base import Run
from services.trainer.objectives.kto import KtoConfig
from services.trainer.run.trainers.common import training_arguments
from services.trainer.run.trainers.comparing import ComparingTrainer, Row


class KtoTrainer(ComparingTrainer, KTOTrainer):  # type: ignore[misc]
    """TRL's trainer; rows have prompt_ids, completion_ids and label."""

    figures: ClassVar[Mapping[str, str]] = {
        "kl": "kl",
        "rewards/chosen": "good_reward",
        "rewards/rejected": "bad_reward",
        "rewards/margins": "margin",
    }
    sequences_per_row = 1

    def __init__(self, run: Run, config: KtoConfig) -> None:
        self.begin(run)
        self._answers = DataCollatorForUnpairedPreference(
            pad_token_id=run.tokenizer.pad_token_id or 0
        )
        super().__init__(
            model=run.model,
            ref_model=self.reference(),
            args=training_arguments(
                KTOConfig,
                run.spec,
                run.total_steps,
                run.store.unused,
                beta=config.beta,
                desirable_weight=config.desirable_weight,
                undesirable_weight=config.undesirable_weight,
                max_length=None,
                disable_dropout=False,
                # TRL rotates answers when it reads the data; ours are rotated within each batch as it is made.
                train_sampling_strategy="sequential",
            ),
            data_collator=self.collator(self.eval_collator),
            train_dataset=self.dataset(),
            processing_class=run.tokenizer,
            callbacks=[self.callback()],
        )
        self.forget_second_adapter()
        self.settle()

    def eval_collator(self, rows: Sequence[Row]) -> Row:
        """A batch whose prompts are paired with their neighbours' answers too, which the divergence is estimated by."""
        # The last batch may be of one row, whose neighbour is then any other row of the training.
        others = rows if len(rows) > 1 else [self._stranger(rows[0])]
        mismatched = [
            {**row, "KL_completion_ids": others[index - 1]["completion_ids"]}
            for index, row in enumerate(rows)
        ]
        batch: Row = self._answers(mismatched)
        return batch

    def _stranger(self, row: Row) -> Row:
        train: Sequence[Row] = self.graft_run.prepared.train
        return next((one for one in train if one["prompt_ids"] != row["prompt_ids"]), row)
