"""What all trainers share: arguments, checkpoints through our store, reports of ours, and no telemetry."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from services.trainer.objectives.base import Run
from services.trainer.run.evaluating.undisturbed import undisturbed
from services.trainer.run.manifests import Score
from services.trainer.run.precision import precision_of
from services.trainer.run.progress import ProgressCallback
from services.trainer.run.scoring import score_of
from services.trainer.run.sharding.base import Replicas
from services.trainer.run.sharding.choose import choose_sharding
from services.trainer.run.team import Team
from services.trainer.run.trainers.pieces import PiecewiseTrainer
from services.trainer.run.trainers.saving import Schedule, take_snapshot
from services.trainer.run.trainers.shares import IDLE, Share, idle_aware
from services.trainer.spec import JobSpec
from services.trainer.spec.hyperparameters import Hyperparameters

_OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
A = TypeVar("A")


class GraftTrainer(PiecewiseTrainer):
    """To be mixed in before a trainer of TRL's: `class Ours(GraftTrainer, TheirTrainer)`.

    Call begin() before and settle() after TRL's constructor, with callbacks=[self.callback()] in it.
    """

    steps_per_epoch: int
    sharding: Replicas
    optimizer: Any

    def begin(self, run: Run) -> None:
        """Takes what the run is made of; comes before TRL's constructor."""
        self.graft_run = run
        self.steps_per_epoch = run.steps_per_epoch
        self.sharding = choose_sharding(run.spec, run.team)

    def callback(self) -> ProgressCallback:
        """Reports, evaluates, saves and stops at the ends of steps."""
        run = self.graft_run
        evaluates = run.prepared.evaluation is not None
        every_steps = run.spec.evaluation.every_steps
        schedule = Schedule(run.spec.checkpointing)
        return ProgressCallback(self, run.progress, schedule, evaluates, every_steps)

    def settle(self) -> None:
        """After TRL's constructor: trained numbers are kept in float32.

        TRL turns a quantized base's adapter to bfloat16, in which small updates are lost.
        """
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

        self.graft_run.team.begin_alike(self._trained())
        self.sharding.share(self.model)
        if self.sharding.places_model:
            self.accelerator.device_placement = False
        self._agree_on_pieces()
        self.accelerator.backward = self.sharding.backward(self.accelerator.backward)
        if self.sharding.lockstep:
            # Each trainer has a loss of its own, and whatever it calls of the model is one pass.
            self.__dict__["compute_loss"] = partial(self._shared_loss, self.compute_loss)

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if not self.sharding.places_model:
            super()._move_model_to_device(model, device)

    def _agree_on_pieces(self) -> None:
        """As many sequences at once in every process: they keep step with each other."""
        for state in self.graft_run.team.ask_all(self.in_pieces.state()):
            self.in_pieces.restore(state)

    @property
    def evaluation_team(self) -> Team:
        """Who shares an evaluation: where all must make the same passes, each makes all of them."""
        return Team() if self.sharding.evaluates_together else self.graft_run.team

    def _evaluate(self, *arguments: Any, **named: Any) -> dict[str, float]:
        usual = super()._evaluate
        found: dict[str, float] = self.sharding.look(lambda: usual(*arguments, **named))
        return found

    def _shared_loss(self, own: Callable[..., Any], *arguments: Any, **named: Any) -> torch.Tensor:
        loss: torch.Tensor = self.sharding.call(lambda: own(*arguments, **named))
        return loss * self._loss_factor

    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def share(self, order: Any) -> Any:
        """This process' part of an order of rows: every so many-th batch."""
        size = self.graft_run.spec.hyperparameters.micro_batch_size
        team = self.graft_run.team
        return order if team.alone else Share(order, size, team.rank, team.size)

    def shared_collator(self, collator: Any) -> Any:
        """A collator that knows the batches that share() fills up with."""
        return collator if self.graft_run.team.alone else idle_aware(collator)

    def begin_epoch(self, epoch: int) -> None:
        """Sets the order of rows to that of an epoch, from 0; an objective without an order of its own needs none."""

    def count_parameters(self) -> tuple[int, int]:
        """Numbers trained, and all numbers of the model."""
        return self.graft_run.method.parameters(self.model)

    def after_step(self, step: int) -> None:
        """What the method does after an optimizer step."""
        self.graft_run.method.after_step(self.model, step)

    def measure_before(self) -> None:
        """Measures the untrained model, where that is asked for and not known."""
        begin = self.graft_run.evaluations.begin
        self.sharding.look(lambda: self.evaluate_with_room(lambda: begin(self)))

    def measure_after(self) -> None:
        """Measures the result, and compares it with before."""
        end = self.graft_run.evaluations.end
        self.sharding.look(lambda: self.evaluate_with_room(lambda: end(self)))

    def held_out(self) -> tuple[float, Mapping[str, float]]:
        """The loss on the held-out rows, and the objective's further figures of them."""
        raise AssertionError("its objective has one")

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measures and reports the held-out rows' figures, and does what follows from them."""
        run, step = self.graft_run, self.state.global_step
        self.control.should_evaluate = False  # Else the epoch's end asks for the same again.
        with undisturbed():
            loss, further = self.held_out()
            figures = run.evaluations.measure(self.model, loss, further)
        run.progress.report_evaluation(
            loss, {name: value for name, value in figures.items() if name != "loss"}
        )
        if run.evaluations.judge(step, figures) and step < self.state.max_steps:
            self.control.should_training_stop = True
        return {f"eval_{name}": value for name, value in figures.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Reports a step's figures."""
        if "loss" in logs:
            progress = self.graft_run.progress
            norm = self.sharding.last_norm(logs.get("grad_norm", 0.0))
            progress.report(self.state, norm, logs["learning_rate"])

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """A forward and backward pass, and that of what the method adds to the loss; the team's at a step's end."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not self.graft_run.team.alone and self.accelerator.sync_gradients:
            self._join_step()
        return loss

    def learn(self, model: Any, batch: Any, num_items: Any) -> Any:
        """Forward and backward passes of a batch; its loss. One that is there to fill up has none."""
        self._passed = 0
        loss = torch.zeros((), device=self.args.device)
        if self.sharding.lockstep or not _is_idle(batch):
            loss = super().learn(model, batch, num_items)
        # Of those that fill up, too: a step's parts of it are then one whole, however many rows it has.
        extra = self.graft_run.method.extra_loss(self.model)
        if extra is not None:
            share = self.current_gradient_accumulation_steps * self.graft_run.team.size
            self.accelerator.backward(extra / share)
        return loss

    _passed = 0

    @property
    def _passes_per_batch(self) -> int:
        return -(-self.in_pieces.wanted // self.in_pieces.size())

    def pieces(self, batch: Any) -> Iterator[Any]:
        """The batch in pieces; as many as every other process has, where they must keep step."""
        given, piece = 0, batch
        for piece in super().pieces(batch):
            yield dict(piece)
            given += 1
        if self.sharding.lockstep:
            for _ in range(given, self._passes_per_batch):
                yield dict(piece) | {IDLE: True}

    def forward_backward(self, model: Any, piece: Any, num_items: Any) -> Any:
        """One forward and backward pass."""
        if not self.sharding.lockstep:
            return super().forward_backward(model, piece, num_items)
        self._passed += 1
        last = self.accelerator.sync_gradients and self._passed == self._passes_per_batch
        # What is nobody's goes through the model all the same, for the others' sake.
        idle = piece.pop(IDLE, False)
        self._loss_factor = 0.0 if idle else 1.0
        progress = self.graft_run.progress
        mark = progress.mark()
        with self.sharding.passes(last):
            loss = super().forward_backward(model, piece, num_items)
        if idle:
            progress.go_back(mark)
        return loss

    _loss_factor = 1.0

    def _join_step(self) -> None:
        """Makes of each process' gradients those of the whole step."""
        live = sum(1 for batch in self._graft_step.batches if not _is_idle(batch))
        self.graft_run.progress.join(live)
        # Each process' losses are parts of the sum over everybody's rows.
        self.sharding.join(self._trained())

    def _clip_grad_norm(self, model: Any) -> Any:
        usual = super()._clip_grad_norm
        norm = self.sharding.clip(lambda: usual(model), self._trained(), self.args.max_grad_norm)
        return norm if math.isfinite(self.graft_run.progress.nats_in_step) else math.nan

    def _get_num_items_in_batch(self, batches: list[Any], device: torch.device) -> Any:
        """Learned tokens of the step, in all processes."""
        own = super()._get_num_items_in_batch(batches, device)
        if own is None or self.graft_run.team.alone:
            return own
        (total,) = self.graft_run.team.sum([float(own)])
        return torch.tensor(int(total), device=device)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self.graft_run.team.first:
            super()._load_rng_state(checkpoint)
        else:
            self.part_ways()

    def begin_step(self) -> None:
        """Gives a process that is not the first its own dropout: with another's, both would leave out the same.

        By the step, so that a run that goes on draws as one that was never stopped.
        """
        self.score = None
        self.part_ways()

    def part_ways(self) -> None:
        """The random numbers of a process that is not the first, from the step that begins."""
        if not self.graft_run.team.first:
            run = self.graft_run
            torch.manual_seed((run.spec.seed, run.team.rank, self.state.global_step).__hash__())

    def create_optimizer(self, *arguments: Any, **named: Any) -> Any:
        """The method's own optimizer, or the usual one."""
        if self.optimizer is None:
            cls, options = Trainer.get_optimizer_cls_and_kwargs(self.args, self.model)
            options = {**options, "weight_decay": self.args.weight_decay}
            self.optimizer = self.graft_run.method.optimizer(self.model, cls, options)
            super().create_optimizer(*arguments, **named)
            self.optimizer = self.sharding.share_optimizer(self.optimizer)
        return self.optimizer

    score: Score | None = None

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Notes what the step is worth; one that is among the best gets a checkpoint."""
        run = self.graft_run
        self.score = score_of(run.spec, metrics)
        if self.score is None or self.state.global_step >= self.state.max_steps:
            return False
        count = run.spec.checkpointing.keep_best
        best = run.progress.agree(run.team.first and run.writer.among_best(self.score, count))
        self.control.should_save = self.control.should_save or best
        return best

    def check_checkpoint(self) -> None:
        """Raises the error of a checkpoint that could not be written beside the training."""
        self.graft_run.writer.check()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = self.graft_run
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        with self.sharding.gathered(self.model, optimizer, run.method.info.makes_base):
            if run.team.first:
                snapshot = take_snapshot(self).beside(self.sharding.parts())
                run.writer.submit(self.state.global_step, snapshot, self.score)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with self.sharding.loading(self.model):
            self.graft_run.method.load_checkpoint(self.model, Path(resume_from_checkpoint))
        self.graft_run.progress.load(Path(resume_from_checkpoint))

    def restore(self, checkpoint: Path) -> None:
        """Becomes what it was when the checkpoint was written, without training any further."""
        self._load_from_checkpoint(os.fspath(checkpoint))
        self.state = TrainerState.load_from_json(os.fspath(checkpoint / TRAINER_STATE_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.sharding.check_parts(Path(checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.sharding.load_parts(Path(checkpoint))

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Writes none: the version's lineage says more."""

    def _send_telemetry(self) -> None:
        """Sends none: a user's training is nobody's business."""


def _is_idle(batch: Any) -> bool:
    # An objective that one process trains may have batches of another kind.
    return isinstance(batch, dict) and bool(batch.get(IDLE, False))


def steps_per_epoch(spec: JobSpec, sequences: int, processes: int = 1) -> int:
    """Optimizer steps of one pass over the data."""
    batches = math.ceil(sequences / spec.hyperparameters.micro_batch_size)
    return math.ceil(batches / (spec.hyperparameters.gradient_accumulation_steps * processes))


def total_steps(spec: JobSpec, epoch_steps: int) -> int:
    """Optimizer steps of the whole run."""
    hyper = spec.hyperparameters
    return hyper.max_steps or max(1, math.ceil(hyper.epochs * epoch_steps))


def training_arguments(
    config: type[A], spec: JobSpec, steps: int, output_dir: Path, **further: Any
) -> A:
    """The arguments of a trainer of TRL's. Logging and checkpoints are asked for by the callback.

    Args:
        config: TRL's class of arguments.
        steps: optimizer steps of the whole run.
        output_dir: where checkpoints are written first.
        further: what that trainer takes beside the usual.
    """
    hyper = spec.hyperparameters
    cuda = torch.cuda.is_available()
    precision = precision_of(hyper, cuda)
    usual = {
        "output_dir": os.fspath(output_dir),
        "per_device_train_batch_size": hyper.micro_batch_size,
        "gradient_accumulation_steps": hyper.gradient_accumulation_steps,
        "max_steps": steps,
        "learning_rate": hyper.learning_rate,
        **_schedule(hyper),
        "warmup_steps": hyper.warmup_of(steps),
        "weight_decay": hyper.weight_decay,
        "max_grad_norm": hyper.max_grad_norm,
        "gradient_checkpointing": hyper.gradient_checkpointing,
        "optim": _OPTIMIZERS[hyper.optimizer],
        "seed": spec.seed,
        "data_seed": spec.seed,
        "logging_strategy": "steps",
        "logging_steps": hyper.report_every_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "neftune_noise_alpha": hyper.neftune_alpha or None,
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "dataloader_num_workers": spec.dataset.loader_processes,
        "remove_unused_columns": False,
    }
    return config(**(usual | further))


def _schedule(hyper: Hyperparameters) -> dict[str, Any]:
    """The schedule as transformers names it; its least learning rate as a share, since a method may have several."""
    if not hyper.min_learning_rate:
        return {"lr_scheduler_type": _SCHEDULES[hyper.schedule]}
    least = {"min_lr_rate": hyper.min_learning_rate / hyper.learning_rate}
    return {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": least}


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Evaluation mode, in which there is no dropout, for all but the layers of bitsandbytes.

    Those would repack a quantized base's weights for inference. To turn off the dropout layers alone is not
    enough: GPT-2's attention, for one, drops out by itself while it is in training mode.
    """
    training = [
        module
        for module in model.modules()
        if module.training and not type(module).__module__.startswith("bitsandbytes")
    ]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
