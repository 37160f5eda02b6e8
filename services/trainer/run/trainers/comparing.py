"""What the trainers share that compare answers: rows that are tokens already, losses per sequence, figures of TRL's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from datasets import Dataset

from services.trainer.objectives.base import Run
from services.trainer.run.batches import RowOrder, with_source
from services.trainer.run.trainers.common import GraftTrainer, without_dropout
from services.trainer.run.trainers.reference import base_is_below
from services.trainer.run.trainers.shares import IDLE, share_rows

Row = dict[str, Any]


class ComparingTrainer(GraftTrainer):
    """To be mixed in before a trainer of TRL's; run.prepared holds lists of rows as its collator takes them.

    The loss that is reported is the mean over sequences, or pairs of them.
    """

    # What compute_loss() gives is a part of the step's loss, and not to be divided once more.
    loss_is_scaled_for_ga = True
    # Of the step that is worked on; 0 outside of one.
    _step_sequences = _step_tokens = 0.0
    # What the mean over a batch's tokens is multiplied with, so that the step's is a mean over all of its tokens.
    token_weight = 1.0
    # TRL's names of what is reported, and ours.
    figures: ClassVar[Mapping[str, str]]

    def begin(self, run: Run) -> None:
        """Takes what the run is made of; comes before TRL's constructor."""
        super().begin(run)
        hyper = run.spec.hyperparameters
        self._lengths = [_length(row) for row in run.prepared.train]
        self._order = RowOrder(
            self._lengths,
            hyper.micro_batch_size,
            run.spec.seed,
            by_length=hyper.group_by_length,
        )

    def dataset(self) -> Dataset:
        """The training rows by their numbers; collator() looks them up."""
        return share_rows(len(self.graft_run.prepared.train))

    def collator(self, theirs: Callable[[list[Row]], Row]) -> Callable[[list[Row]], Row]:
        """TRL's collator on the rows of those numbers."""
        rows: Sequence[Row] = self.graft_run.prepared.train
        self._theirs = theirs

        def collate(features: list[dict[str, int]]) -> Row:
            return with_source([rows[one["row"]] for one in features], lambda all_: theirs([*all_]))

        collated: Callable[[list[Row]], Row] = self.shared_collator(collate)
        return collated

    def make_batch(self, items: Sequence[Row]) -> Row:
        """A batch of some of another's rows."""
        return self._theirs(list(items))

    def reference(self) -> Any | None:
        """A copy of the base as the reference; None where the adapter can be turned off instead."""
        run = self.graft_run
        if base_is_below(run):
            return None
        return run.load_base(run.spec.base).requires_grad_(False).eval()

    def forget_second_adapter(self) -> None:
        """Removes the copy that TRL makes of a fresh adapter as a reference: turning it off is the same."""
        if "ref" in getattr(self.model, "peft_config", {}):
            self.model.delete_adapter("ref")

    def begin_epoch(self, epoch: int) -> None:
        """Sets the order of rows to that of an epoch, from 0."""
        self._order.begin_epoch(epoch)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _get_train_sampler(self, *_: Any) -> Any:
        return self.share(self._order)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["row"]

    def compute_loss(self, model: Any, inputs: Row, *arguments: Any, **named: Any) -> torch.Tensor:
        """A batch's part of the mean loss of the whole step's sequences."""
        sequences, tokens = self._size(inputs)
        share = sequences / (self._step_sequences or sequences)
        if self._step_tokens:
            self.token_weight = self.supervised_tokens(inputs) / self._step_tokens / share
        loss: torch.Tensor = super().compute_loss(model, inputs, *arguments, **named)
        self.token_weight = 1.0
        value = self.check_loss(loss)
        progress = self.graft_run.progress
        progress.add_batch(value * sequences, sequences, tokens)
        progress.add_figures(self._taken())
        return loss * share

    def step_begins(self, batches: list[Row]) -> None:
        """Counts the sequences of the step, in all processes: a mean over batches would weigh small ones more."""
        live = [one for one in batches if not one.get(IDLE, False)]
        counts = [
            float(sum(self._size(one)[0] for one in live)),
            float(sum(self.supervised_tokens(one) for one in live)),
        ]
        self._step_sequences, self._step_tokens = self.graft_run.team.sum(counts)

    def supervised_tokens(self, inputs: Row) -> int:
        """Tokens of a batch that a part of the loss is a mean over; 0 where there is no such part."""
        return 0

    @torch.no_grad()
    def held_out(self) -> tuple[float, Mapping[str, float]]:
        """Mean loss of the held-out sequences, and the means of their figures."""
        rows: Sequence[Row] = self.graft_run.prepared.evaluation or ()
        total, figures, seen = 0.0, dict[str, float](), dict[str, float]()
        team = self.evaluation_team
        with without_dropout(self.model):
            for part in self.evaluation_batches(rows):
                inputs = self._prepare_inputs(self.eval_collator(part))
                total += float(super().compute_loss(self.model, inputs)) * len(part)
                for name, value in self._taken().items():
                    figures[name] = figures.get(name, 0.0) + value * len(part)
                    seen[name] = seen.get(name, 0) + len(part)
        names = [name for name in self.figures.values() if name]
        total, *sums = team.sum(
            [total, *(both.get(name, 0.0) for name in names for both in (figures, seen))]
        )
        figures, seen = (
            dict(zip(names, sums[::2], strict=True)),
            dict(zip(names, sums[1::2], strict=True)),
        )
        # A batch without good answers says nothing of them, so each figure has its own count.
        means = {name: value / seen[name] for name, value in figures.items() if seen[name]}
        return total / len(rows), means

    def eval_collator(self, rows: Sequence[Row]) -> Row:
        """A batch of held-out rows."""
        raise AssertionError("its trainer has one")

    def _size(self, inputs: Row) -> tuple[int, int]:
        """Sequences, or pairs of them, and tokens of a batch."""
        mask = inputs["attention_mask"]
        return len(mask) // self.sequences_per_row, int(mask.sum())

    sequences_per_row = 2

    def _taken(self) -> dict[str, float]:
        """What TRL noted since it was last asked, by our names."""
        found = {}
        for noted in self._metrics.values():
            for theirs, ours in self.figures.items():
                if noted.get(theirs):
                    found[ours] = float(noted[theirs][-1])
            noted.clear()
        return found


def _length(row: Row) -> int:
    """Tokens of a row, all its sequences together."""
    return sum(len(ids) for name, ids in row.items() if name.endswith("_ids"))
