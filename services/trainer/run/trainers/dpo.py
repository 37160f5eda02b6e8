"""DPO through TRL's DPOTrainer, on pairs that are tokens already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from services.trainer.objectives.base import Run
from services.trainer.objectives.dpo import DpoConfig
from services.trainer.run.trainers.common import training_arguments
from services.trainer.run.trainers.comparing import ComparingTrainer, Row

# What "robust" takes for the share of answers that were labelled the wrong way round.
_WRONG_LABELS = 0.1


class DpoTrainer(ComparingTrainer, DPOTrainer):  # type: ignore[misc]
    """TRL's trainer; rows have prompt_ids, chosen_ids and rejected_ids."""

    figures: ClassVar[Mapping[str, str]] = {
        "rewards/accuracies": "accuracy",
        "rewards/margins": "margin",
        "rewards/chosen": "chosen_reward",
        "rewards/rejected": "rejected_reward",
    }

    def __init__(self, run: Run, config: DpoConfig) -> None:
        self.begin(run)
        self._pairs = DataCollatorForPreference(pad_token_id=run.tokenizer.pad_token_id or 0)
        self._sft_weight = config.sft_weight
        losses, weights = [config.loss], [1.0]
        if config.sft_weight:
            self._sft_weight = config.sft_weight
        losses, weights = [config.loss, "sft"], [1.0, config.sft_weight]
        super().__init__(
            model=run.model,
            ref_model=self.reference(),
            args=training_arguments(
                DPOConfig,
                run.spec,
                run.total_steps,
                run.store.unused,
                beta=config.beta,
                loss_type=losses,
                loss_weights=weights,
                label_smoothing=_WRONG_LABELS if config.loss == "robust" else 0.0,
                max_length=None,
                disable_dropout=False,
            ),
            data_collator=self.collator(self._pairs),
            train_dataset=self.dataset(),
            processing_class=run.tokenizer,
            callbacks=[self.callback()],
        )
        self.forget_second_adapter()
        self.settle()

    def supervised_tokens(self, inputs: Row) -> int:
        """Tokens of the chosen answers, where their cross-entropy is a part of the loss."""
        mask = inputs["completion_mask"]
        return int(mask[: len(mask) // 2, 1:].sum()) if self._sft_weight else 0

    def _compute_loss(self, model: Any, inputs: Row, return_outputs: bool) -> Any:
        if self._sft_weight:
            self.loss_weights = [1.0, self._sft_weight * self.token_weight]
        return super()._compute_loss(model, inputs, return_outputs)

    def eval_collator(self, rows: Sequence[Row]) -> Row:
        """A batch of held-out pairs."""
        batch: Row = self._pairs(list(rows))
        return batch
