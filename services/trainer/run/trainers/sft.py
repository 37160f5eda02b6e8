"""Supervised fine-tuning through TRL's SFTTrainer, on rows that are tokens already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from trl import SFTConfig, SFTTrainer

from services.trainer.objectives.base import Run
from services.trainer.run.batches import SOURCE, PackedRows, PaddedRows, RowOrder
from services.trainer.run.isolation import check_isolation
from services.trainer.run.streams import InOrder, StreamedRows
from services.trainer.run.trainers.common import (
    GraftTrainer,
    training_arguments,
    without_dropout,
)
from services.trainer.run.trainers.head_loss import has_plain_head, summed_loss
from services.trainer.run.trainers.shares import share_rows
from services.trainer.spec import JobSpec
from services.trainer.tokens import IGNORED


class SupervisedTrainer(GraftTrainer, SFTTrainer):  # type: ignore[misc]
    """TRL's trainer; run.prepared is as prepare_rows() makes it."""

    def __init__(self, run: Run) -> None:
        self.begin(run)
        batches: PaddedRows | PackedRows | StreamedRows = run.prepared.train
        self._order = _order(batches, run.spec)
        self._batches = batches
        super().__init__(
            model=run.model,
            args=training_arguments(
                SFTConfig,
                run.spec,
                run.total_steps,
                run.store.unused,
                dataset_kwargs={"skip_prepare_dataset": True},
                max_length=None,
                packing=False,
            ),
            data_collator=self.shared_collator(batches),
            train_dataset=share_rows(len(self._order)),
            processing_class=run.tokenizer,
            callbacks=[self.callback()],
        )
        self._plain_head = (
            self.args.device.type == "cpu"
            and not run.method.uses_own_forward()
            and has_plain_head(run.model)
        )
        self.settle()
        if batches.packs:
            check_isolation(self.model, device=self.args.device)

    def make_batch(self, items: Any) -> dict[str, Any]:
        """A batch of some of another's items."""
        return self._batches.make(items)

    def begin_epoch(self, epoch: int) -> None:
        """Sets the order of rows to that of an epoch, from 0."""
        self._order.begin_epoch(epoch)

    def _get_train_sampler(self, *_: Any) -> Any:
        return self.share(self._order)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["row"]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The summed loss of the batch over the number of learned tokens of the whole step."""
        assert not return_outputs
        assert num_items_in_batch is not None
        rows = self._take_rows(inputs)
        loss = self.batch_loss(model, inputs, num_items_in_batch)
        nats = self.check_loss(loss) * int(num_items_in_batch)
        learned = int((inputs["labels"][:, 1:] != IGNORED).sum())
        self.graft_run.progress.add_batch(nats, learned, sum(len(row) for row in rows))
        return loss

    def _take_rows(self, inputs: dict[str, Any]) -> Any:
        """The batch's rows, taken out of its inputs, which become what the model's own forward pass takes."""
        rows = inputs.pop("rows")
        if self.graft_run.method.uses_own_forward():
            # What comes before the input moves its positions, which are counted from the mask.
            positions = inputs.pop("position_ids")
            lengths = torch.tensor([len(row) for row in rows], device=positions.device)
            inputs["attention_mask"] = (positions < lengths[:, None]).long()
            # Behind learned embeddings the first token is predicted, too; no other method learns it.
            inputs["labels"][:, 0] = IGNORED
        return rows

    def batch_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], learned_tokens: torch.Tensor
    ) -> torch.Tensor:
        """The summed loss of a batch over the number of learned tokens of the whole step."""
        if self._plain_head:
            return summed_loss(model, inputs) / learned_tokens.clamp(min=1)
        loss: torch.Tensor = super().compute_loss(model, inputs, num_items_in_batch=learned_tokens)
        self._metrics["train"].clear()
        return loss

    @torch.no_grad()
    def held_out(self) -> tuple[float, Mapping[str, float]]:
        """Mean loss per learned token of the held-out rows, in nats."""
        batches = self.graft_run.prepared.evaluation
        assert batches is not None
        nats, learned = 0.0, 0.0
        with without_dropout(self.model):
            for inputs in self._eval_inputs(batches):
                nats += float(self.eval_loss(inputs))
                learned += int((inputs["labels"][:, 1:] != IGNORED).sum())
        nats, learned = self.evaluation_team.sum([nats, learned])
        return nats / max(learned, 1), {}

    def _eval_inputs(self, batches: PaddedRows) -> Iterator[dict[str, torch.Tensor]]:
        order = sorted(range(len(batches.rows)), key=lambda row: -len(batches.rows[row]))
        for rows in self.evaluation_batches(order):
            inputs = batches([{"row": row} for row in rows])
            del inputs[SOURCE]
            self._take_rows(inputs)
            yield self._prepare_inputs(inputs)

    def eval_loss(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The summed loss of a held-out batch, by whatever head the model needs."""
        if self._plain_head:
            return summed_loss(self.model, inputs)
        outputs = self.model(**inputs, use_cache=False, fused_lm_head=True)
        loss: torch.Tensor = -outputs.log_probs.sum()
        return loss


def _order(batches: PaddedRows | PackedRows | StreamedRows, spec: JobSpec) -> RowOrder | InOrder:
    if isinstance(batches, StreamedRows):
        return InOrder(batches.sequences)
    hyper = spec.hyperparameters
    by_length = hyper.group_by_length and not batches.packs
    return RowOrder(batches.lengths, hyper.micro_batch_size, spec.seed, by_length=by_length)
