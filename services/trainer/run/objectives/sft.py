"""Supervised fine-tuning through TRL's SFTTrainer, with our rows, our checkpoints and our reports."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

from services.trainer.run.batches import PackedRows, PaddedRows, RowOrder
from services.trainer.run.checkpoints import CheckpointStore
from services.trainer.run.methods.base import Method
from services.trainer.run.methods.lora import diverged
from services.trainer.run.objectives.head_loss import has_plain_head, summed_loss
from services.trainer.run.progress import Progress, ProgressCallback
from services.trainer.run.tokens import IGNORED
from services.trainer.spec import JobSpec

_OPTIMIZERS = {"adamw": "adamw_torch_fused", "paged_adamw_8bit": "paged_adamw_8bit"}
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
_NAMED_ROWS = 8


class SupervisedTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's trainer on rows that are tokens already.

    Args:
        model: with a method applied.
        tokenizer: the base's.
        spec: the job.
        batches: the training rows as batches.
        eval_batches: the held-out rows, or None.
        method: saves and restores what is trained.
        store: keeps the checkpoints.
        progress: counts and reports.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        spec: JobSpec,
        batches: PaddedRows | PackedRows,
        eval_batches: PaddedRows | None,
        method: Method,
        store: CheckpointStore,
        progress: Progress,
    ) -> None:
        self._batches = batches
        self._eval_batches = eval_batches
        self._method = method
        self._store = store
        self._progress = progress
        self._spec = spec
        sequences = len(batches.lengths)
        self._order = RowOrder(batches.lengths, spec.hyperparameters.micro_batch_size, spec.seed)
        self.steps_per_epoch = steps_per_epoch(spec, sequences)
        super().__init__(
            model=model,
            args=training_arguments(spec, self.steps_per_epoch, store.partial),
            data_collator=batches,
            train_dataset=Dataset.from_dict({"row": list(range(sequences))}),
            processing_class=tokenizer,
            callbacks=[ProgressCallback(self, progress, spec, eval_batches is not None)],
        )
        self._plain_head = self.args.device.type == "cpu" and has_plain_head(model)
        # TRL turns a quantized base's adapter to bfloat16, in which small updates are lost.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def begin_epoch(self, epoch: int) -> None:
        """Sets the order of rows to that of an epoch, from 0."""
        self._order.begin_epoch(epoch)

    def _get_train_sampler(self, *_: Any) -> RowOrder:
        return self._order

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
        rows = inputs.pop("rows")
        if self._plain_head:
            loss = summed_loss(model, inputs) / num_items_in_batch.clamp(min=1)
        else:
            loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
            self._metrics["train"].clear()
        nats = float(loss.detach()) * int(num_items_in_batch)
        if not math.isfinite(nats):
            places = "; ".join(str(row.place) for row in rows[:_NAMED_ROWS])
            raise diverged(
                f"The loss is not finite at step {self.state.global_step + 1} ({places})"
            )
        learned = int((inputs["labels"][:, 1:] != IGNORED).sum())
        self._progress.add_batch(nats, learned, sum(len(row) for row in rows))
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Reports a step's figures."""
        if "loss" in logs:
            self._progress.report(self.state, logs.get("grad_norm", 0.0), logs["learning_rate"])

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss per learned token of the held-out rows, in nats; reports it."""
        assert self._eval_batches is not None
        self.control.should_evaluate = False  # Else the epoch's end asks for the same again.
        nats, learned = 0.0, 0
        with _without_dropout(self.model):
            for inputs in self._eval_inputs(self._eval_batches):
                nats += float(summed_loss_of(self, inputs))
                learned += int((inputs["labels"][:, 1:] != IGNORED).sum())
        loss = nats / max(learned, 1)
        self._progress.report_evaluation(loss)
        return {"eval_loss": loss}

    def _eval_inputs(self, batches: PaddedRows) -> Iterator[dict[str, torch.Tensor]]:
        size = self._spec.hyperparameters.micro_batch_size
        order = sorted(range(len(batches.rows)), key=lambda row: -len(batches.rows[row]))
        for start in range(0, len(order), size):
            inputs = batches([{"row": row} for row in order[start : start + size]])
            del inputs["rows"]
            yield self._prepare_inputs(inputs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step

        def fill() -> Path:
            Trainer._save_checkpoint(self, model, trial)
            written = Path(self.args.output_dir) / f"checkpoint-{step}"
            self._progress.save(written)
            return written

        self._store.write(step, fill)
        self._progress.checkpoint(step)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        self._method.save(self.model, Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self._method.load(self.model, Path(resume_from_checkpoint))
        self._progress.load(Path(resume_from_checkpoint))

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Writes none: the version's lineage says more."""

    def _send_telemetry(self) -> None:
        """Sends none: a user's training is nobody's business."""


def summed_loss_of(trainer: SupervisedTrainer, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The summed loss of a batch, by whatever head the trainer's model needs."""
    if trainer._plain_head:
        return summed_loss(trainer.model, inputs)
    outputs = trainer.model(**inputs, use_cache=False, fused_lm_head=True)
    loss: torch.Tensor = -outputs.log_probs.sum()
    return loss


def steps_per_epoch(spec: JobSpec, sequences: int) -> int:
    """Optimizer steps of one pass over the data."""
    batches = math.ceil(sequences / spec.hyperparameters.micro_batch_size)
    return math.ceil(batches / spec.hyperparameters.gradient_accumulation_steps)


def training_arguments(spec: JobSpec, epoch_steps: int, output_dir: Path) -> Any:
    """TRL's arguments for a spec. Logging and checkpoints are asked for by the callback."""
    hyper = spec.hyperparameters
    total_steps = hyper.max_steps or max(1, math.ceil(hyper.epochs * epoch_steps))
    cuda = torch.cuda.is_available()
    return SFTConfig(
        output_dir=os.fspath(output_dir),
        per_device_train_batch_size=hyper.micro_batch_size,
        gradient_accumulation_steps=hyper.gradient_accumulation_steps,
        max_steps=total_steps,
        learning_rate=hyper.learning_rate,
        lr_scheduler_type=_SCHEDULES[hyper.schedule],
        warmup_steps=math.ceil(hyper.warmup_ratio * total_steps),
        weight_decay=hyper.weight_decay,
        max_grad_norm=hyper.max_grad_norm,
        gradient_checkpointing=hyper.gradient_checkpointing,
        optim=_OPTIMIZERS[hyper.optimizer],
        seed=spec.seed,
        data_seed=spec.seed,
        logging_strategy="steps",
        logging_steps=hyper.report_every_steps,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=cuda and torch.cuda.is_bf16_supported(),
        fp16=False,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
    )


@contextmanager
def _without_dropout(model: Any) -> Iterator[None]:
    """Turns dropout off and nothing else.

    In eval mode bitsandbytes would repack a quantized base's weights for inference.
    """
    dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.training]
    for module in dropouts:
        module.eval()
    try:
        yield
    finally:
        for module in dropouts:
            module.train()
