"""Counts what a training run does, reports it, and decides at each step's end what happens next."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from google.protobuf.json_format import MessageToDict, ParseDict
from graft.common.v1.common_pb2 import TrainingMetrics
from graft.trainer.v1.worker_service_pb2 import Started
from transformers import TrainerCallback

from services.trainer.run.memory import Pieces
from services.trainer.run.reporters import Reporter
from services.trainer.run.stop import StopSignal
from services.trainer.run.team import Team

if TYPE_CHECKING:
    from services.trainer.run.checkpoints import Checkpoint
    from services.trainer.run.trainers.saving import Schedule

PROGRESS_FILE = "progress.json"
_SMOOTHING = 0.9


class Kept(Protocol):
    """Something beside the model that a resumed run must know; its state is JSON's values."""

    def state(self) -> dict[str, Any]:
        """What restore() takes."""

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where state() was taken."""


class Progress:
    """Figures of a run.

    Args:
        reporter: gets them.
        stop: asked at each step's end.
        team: the processes whose figures these are; this one alone when left out.
        pieces: how many sequences are taken at once; all of a batch when left out.
    """

    def __init__(
        self,
        reporter: Reporter,
        stop: StopSignal,
        team: Team | None = None,
        pieces: Pieces | None = None,
    ) -> None:
        self._reporter = reporter
        self._stop = stop
        self._team = team or Team()
        self.pieces = pieces or Pieces(sys.maxsize, reporter.log)
        self.pulse = reporter.pulse
        self.last_checkpoint = 0
        self._told_to_stop = False
        self._in_step = [0.0, 0.0, 0.0]
        self.tokens = 0
        self.step_batches = 0
        self.last = TrainingMetrics()
        self._nats, self._learned, self._new_tokens = 0.0, 0, 0
        self._figures: dict[str, list[float]] = {}
        self._kept: dict[str, Kept] = {}
        self._evaluated: dict[str, float] = {}
        self._step_s = 0.0
        self._reported_at = self._stepped_at = time.monotonic()

    def begin(self, started: Started) -> None:
        """Reports that training begins and starts the clock."""
        self._reporter.started(started)
        self._reported_at = self._stepped_at = time.monotonic()

    def add_batch(self, nats: float, learned_tokens: int, tokens: int) -> None:
        """Counts a batch: its summed loss, the tokens it is of, and all its real tokens."""
        self._in_step[0] += nats
        self._in_step[1] += learned_tokens
        self._in_step[2] += tokens

    def mark(self) -> tuple[list[float], dict[str, int]]:
        """What is counted of this step by now."""
        return list(self._in_step), {name: len(all_) for name, all_ in self._figures.items()}

    def go_back(self, mark: tuple[list[float], dict[str, int]]) -> None:
        """Forgets what was counted since mark()."""
        counted, lengths = mark
        self._in_step = list(counted)
        self._figures = {
            name: all_[: lengths[name]] for name, all_ in self._figures.items() if name in lengths
        }

    @property
    def nats_in_step(self) -> float:
        """The summed loss of this step by now; after join(), of all processes."""
        return self._in_step[0]

    def say(self, line: str) -> None:
        """Reports a line for people."""
        self._reporter.log(line)

    def join(self, batches: int) -> int:
        """Adds up what all processes did in a step; the sum of their batches.

        Here they also hear whether one of them is told to stop: all stop after the same step, or none.
        """
        told = float(self._stop.preempted)
        *self._in_step, told, total = self._team.sum([*self._in_step, told, batches])
        self._told_to_stop = told > 0
        return int(total)

    def agree(self, what: bool) -> bool:
        """What the first process of the team decides, in all of them."""
        return what if self._team.alone else bool(self._team.tell(what))

    @property
    def told_to_stop(self) -> bool:
        """Whether the run shall write a checkpoint and stop after this step."""
        return self._stop.preempted if self._team.alone else self._told_to_stop

    def add_figures(self, figures: Mapping[str, float]) -> None:
        """Takes further figures of a batch; a report holds their means."""
        for name, value in figures.items():
            self._figures.setdefault(name, []).append(value)

    def step_done(self, step: int) -> None:
        """Takes the time and the counts of an optimizer step."""
        self.pulse.step_done(step)
        nats, learned, tokens = self._in_step
        self._nats += nats
        self._learned += int(learned)
        self._new_tokens += int(tokens)
        self.tokens += int(tokens)
        self._in_step = [0.0, 0.0, 0.0]
        now = time.monotonic()
        step_s, self._stepped_at = now - self._stepped_at, now
        old = self._step_s or step_s
        self._step_s = _SMOOTHING * old + (1 - _SMOOTHING) * step_s

    def report(self, state: Any, grad_norm: float, learning_rate: float) -> None:
        """Reports what was counted since the last report."""
        now = time.monotonic()
        seconds = max(now - self._reported_at, 1e-9)
        self.last = TrainingMetrics(
            step=state.global_step,
            total_steps=state.max_steps,
            epoch=state.epoch or 0.0,
            loss=self._nats / max(self._learned, 1),
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            tokens=self.tokens,
            tokens_per_second=self._new_tokens / seconds,
            remaining_s=(state.max_steps - state.global_step) * self._step_s,
            figures={name: sum(all_) / len(all_) for name, all_ in self._figures.items()}
            | self.pieces.figures(),
        )
        self._reporter.metrics(self.last)
        self._nats, self._learned, self._new_tokens = 0.0, 0, 0
        self._figures = {}
        self._reported_at = now

    def report_evaluation(self, loss: float, figures: Mapping[str, float] | None = None) -> None:
        """Reports the loss on held-out rows, and further figures of them, at the step reported last."""
        self.last.eval_loss = loss
        self._evaluated = {"eval_loss": loss}
        for name, value in (figures or {}).items():
            self.last.figures[f"eval_{name}"] = self._evaluated[f"eval_{name}"] = value
        self._reporter.metrics(self.last)
        self._reported_at = self._stepped_at = time.monotonic()

    def report_end(self, figures: Mapping[str, float]) -> None:
        """Reports the figures of the result, by the names that they have in its lineage."""
        if figures:
            if "eval_loss" in figures:
                self.last.eval_loss = figures["eval_loss"]
            further = {name: value for name, value in figures.items() if name != "eval_loss"}
            self.last.figures.update(further)
            self._reporter.metrics(self.last)

    def final_figures(self) -> dict[str, float]:
        """What a version's lineage says of the run."""
        figures = {
            "train_loss": self.last.loss,
            "steps": float(self.last.step),
            "tokens": float(self.tokens),
        }
        return figures | dict(self.last.figures) | self._evaluated | self.pieces.figures()

    def checkpoint(self, step: int) -> None:
        """Reports a checkpoint."""
        self.last_checkpoint = step
        self._reporter.checkpoint(step)

    def keep(self, name: str, kept: Kept) -> None:
        """Has checkpoints hold something's state, too."""
        self._kept[name] = kept

    def to_json(self) -> bytes:
        """What a resumed run must know, for a checkpoint: also what was counted since the last report."""
        content = {
            "tokens": self.tokens,
            "step_batches": self.step_batches,
            "unreported": [self._nats, self._learned],
            "figures": self._figures,
            "evaluated": self._evaluated,
            "pieces": self.pieces.state(),
            "last": MessageToDict(self.last),
            **{name: one.state() for name, one in self._kept.items()},
        }
        return json.dumps(content).encode()

    def load(self, folder: Path) -> None:
        """Reads what to_json() gave from a checkpoint's folder."""
        content = json.loads((folder / PROGRESS_FILE).read_bytes())
        self.tokens = content["tokens"]
        # One of an earlier release does not have the rest.
        self._nats, self._learned = content.get("unreported", (0.0, 0))
        self._figures = content.get("figures", {})
        self._evaluated = content.get("evaluated", {})
        self.pieces.restore(content.get("pieces", {}))
        ParseDict(content.get("last", {}), self.last)
        for name, one in self._kept.items():
            if name in content:
                one.restore(content[name])

    def use_result(self, checkpoint: Checkpoint) -> None:
        """The result is a checkpoint's: the final figures of the evaluation are those of its step."""
        content = json.loads((checkpoint.path / PROGRESS_FILE).read_bytes())
        self._evaluated = content["evaluated"] | {"result_step": float(checkpoint.step)}


def batches_of_step(folder: Path) -> int:
    """Batches that each step of a checkpoint's run had, in all its processes; 0 where it does not say."""
    return int(json.loads((folder / PROGRESS_FILE).read_bytes()).get("step_batches", 0))


class EpochTrainer(Protocol):
    """What the callback needs of a trainer."""

    steps_per_epoch: int

    def begin_epoch(self, epoch: int) -> None:
        """Sets the order of rows to that of an epoch."""

    def begin_step(self) -> None:
        """What comes before the batches of a step."""

    def check_checkpoint(self) -> None:
        """Raises the error of a checkpoint that could not be written beside the training."""

    def count_parameters(self) -> tuple[int, int]:
        """Numbers trained, and all numbers of the model."""

    def after_step(self, step: int) -> None:
        """What the method does after an optimizer step."""

    def measure_before(self) -> None:
        """Measures the untrained model, where that is asked for and not known."""


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Listens to the loop: starts epochs, asks for reports, evaluations and checkpoints, and stops."""

    def __init__(
        self,
        trainer: EpochTrainer,
        progress: Progress,
        schedule: Schedule,
        evaluates: bool,
        evaluate_every_steps: int,
    ) -> None:
        self._trainer = trainer
        self._progress = progress
        self._schedule = schedule
        self._evaluate_every_steps = evaluate_every_steps
        self._evaluates = evaluates

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Reports the start."""
        self._trainer.measure_before()
        self._schedule.begin()
        self._progress.last_checkpoint = state.global_step
        trained, total = self._trainer.count_parameters()
        self._progress.begin(
            Started(
                step=state.global_step,
                total_steps=state.max_steps,
                trainable_parameters=trained,
                total_parameters=total,
            )
        )

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Sets the epoch's order, by counting steps so that it is right after a resume too."""
        self._trainer.begin_epoch(state.global_step // self._trainer.steps_per_epoch)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Prepares the step."""
        self._trainer.begin_step()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Counts the time to the next checkpoint."""
        self._schedule.begin()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Lets the method act while the step's gradients are still there."""
        self._trainer.after_step(state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Decides what follows the step."""
        step = state.global_step
        self._progress.step_done(step)
        self._trainer.check_checkpoint()
        last = step >= state.max_steps
        every_steps = self._evaluate_every_steps or self._trainer.steps_per_epoch
        control.should_evaluate = self._evaluates and (last or step % every_steps == 0)
        # What is evaluated is reported with its own step's figures.
        control.should_log = control.should_log or last or control.should_evaluate
        due = self._schedule.due(step)
        if self._schedule.by_time:
            due = self._progress.agree(due)
        # The last one, too: what is done with the result may fail, and none of the training with it.
        control.should_save = last or due
        if self._progress.told_to_stop and not last:
            control.should_save = control.should_training_stop = True
