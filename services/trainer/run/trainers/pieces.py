"""A trainer's step, which is done again in smaller pieces when memory runs out, and which must stay finite.

What a batch was made of comes with it, so that it can be made again in pieces and its rows can be named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from transformers import Trainer

from services.trainer.objectives.base import Run
from services.trainer.run.batches import SOURCE, Source
from services.trainer.run.divergence import (
    NotFiniteError,
    culprits,
    diverged_at,
    has_finite_gradients,
)
from services.trainer.run.exits import OutOfMemoryError
from services.trainer.run.memory import (
    EVALUATION,
    TRAINING,
    Pieces,
    out_of_memory_words,
    places_of,
    what_helps,
)
from services.trainer.run.sharding.base import Replicas
from services.trainer.run.team import Team

# So often in a row the scaler of fp16 may find a gradient that is not finite: by then it multiplies by nothing.
_MOST_SKIPPED = 30
T = TypeVar("T")


@dataclass(slots=True)
class _Step:
    """A step's batches, how many of them the loop has come to, and how many are learned from."""

    batches: list[Any]
    begun: int = 0
    learned: int = 0
    mark: Any = None
    items: Sequence[Any] = field(default_factory=list)


class PiecewiseTrainer(Trainer):  # type: ignore[misc]
    """To be mixed in before another trainer."""

    graft_run: Run
    sharding: Replicas
    model: Any
    _graft_step: _Step
    _skipped = 0

    @property
    def evaluation_team(self) -> Team:
        """The processes that share an evaluation."""
        return self.graft_run.team

    @property
    def in_pieces(self) -> Pieces:
        """How many sequences are taken at once."""
        return self.graft_run.progress.pieces

    def get_batch_samples(self, *arguments: Any, **named: Any) -> tuple[list[Any], Any]:
        """The batches of a step, and how many tokens are learned of them."""
        self.graft_run.progress.pulse.works()
        batches, items = super().get_batch_samples(*arguments, **named)
        self._graft_step = _Step(batches)
        self.step_begins(batches)
        return batches, items

    def step_begins(self, batches: list[Any]) -> None:
        """Called with a step's batches before anything is done with them."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Forward and backward passes of the step's next batch; of all until then, when memory runs out."""
        step = self._graft_step
        if step.mark is None:
            step.mark = self.mark()
        step.begun += 1
        while True:
            loss, why = out_of_memory_words(lambda: self._catch_up(model, num_items_in_batch))
            if not why:
                return loss
            self._shrink(why)
            model.zero_grad()
            self.go_back(step.mark)
            step.learned = 0

    def _catch_up(self, model: Any, num_items: Any) -> Any:
        step = self._graft_step
        loss = torch.zeros((), device=self.args.device)
        for batch in step.batches[step.learned : step.begun]:
            loss = self.learn(model, batch, num_items)
            step.learned += 1
        return loss

    @property
    def steps_together(self) -> bool:
        """Whether the processes speak to each other in the middle of a step: then none can do it again alone."""
        return self.sharding.lockstep

    def _shrink(self, why: str) -> None:
        where = f"in step {self.state.global_step + 1}"
        advice = what_helps(self.graft_run.spec)
        if self.steps_together:
            self.in_pieces.restart(where, why, advice)
        most = max(_sequences(batch) for batch in self._graft_step.batches)
        self.in_pieces.halve(TRAINING, where, why, advice, most)

    def learn(self, model: Any, batch: Any, num_items: Any) -> Any:
        """Forward and backward passes of a batch, piece by piece; its loss."""
        total = torch.zeros((), device=self.args.device)
        for piece in self.pieces(batch):
            try:
                total += self.forward_backward(model, piece, num_items)
            except NotFiniteError:
                raise self._diverged("The loss", self._graft_step.items, self._has_loss) from None
        return total

    def pieces(self, batch: Any) -> Iterator[Any]:
        """The batch in pieces that are small enough."""
        source: Source | None = batch.get(SOURCE)
        if source is None or len(source.items) <= self.in_pieces.size():
            self._graft_step.items = source.items if source else []
            yield {name: value for name, value in batch.items() if name != SOURCE}
            return
        for items in self.in_pieces.cut(source.items):
            self._graft_step.items = items
            yield self.make_batch(items)

    def make_batch(self, items: Sequence[Any]) -> dict[str, Any]:
        """A batch of some of another's items."""
        raise AssertionError("its trainer has one")

    def forward_backward(self, model: Any, piece: Any, num_items: Any) -> Any:
        """One forward and backward pass."""
        return super().training_step(model, piece, num_items)

    def mark(self) -> Any:
        """All that a step changes before its gradients are applied, but for these."""
        cuda = torch.cuda.get_rng_state() if self.args.device.type == "cuda" else None
        return torch.get_rng_state(), cuda, self.graft_run.progress.mark()

    def go_back(self, mark: Any) -> None:
        """Puts back what mark() gave."""
        cpu, cuda, counted = mark
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
        self.graft_run.progress.go_back(counted)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """The precision that is trained in, also where layers are called and not the whole model."""
        return self.accelerator.autocast()

    def check_loss(self, loss: torch.Tensor) -> float:
        """The loss as a number.

        Raises:
            NotFiniteError: it is none. Of several processes the gradients tell, so that all hear of it.
        """
        value = float(loss.detach())
        if not math.isfinite(value) and self.graft_run.team.alone:
            raise NotFiniteError
        return value

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if math.isfinite(float(norm)):
            self._skipped = 0
            return norm
        self._skipped += 1
        if self.accelerator.scaler is None or self._skipped >= _MOST_SKIPPED:
            sources = [self.source_of(batch) for batch in self._graft_step.batches]
            items = [item for source in sources for item in source]
            raise self._diverged("The gradient", items, self._has_gradients)
        return norm  # The scaler leaves this step out, and takes a smaller factor.

    def source_of(self, batch: Any) -> Sequence[Any]:
        """The items of a batch."""
        source = batch.get(SOURCE)
        return source.items if source else ()

    def _diverged(
        self, what: str, items: Sequence[Any], is_fine: Callable[[Any], bool]
    ) -> Exception:
        """The error that names the rows which it comes from."""
        bad, why = None, ""
        if not self.sharding.lockstep:  # One process cannot look for itself.
            bad, why = out_of_memory_words(lambda: culprits(items, is_fine))
        places = [str(place) for place in places_of(items if why or bad is None else bad)]
        everybodys = [place for one in self.graft_run.team.ask_all(places) for place in one]
        progress = self.graft_run.progress
        with suppress(Exception):  # That it could not be written is another matter.
            self.graft_run.writer.wait()
        rate = float(self._get_learning_rate())
        step = self.state.global_step + 1
        return diverged_at(what, step, rate, everybodys, progress.last_checkpoint)

    def _has_loss(self, item: Any) -> bool:
        """Whether the loss of an item alone is finite."""
        try:
            with torch.no_grad():
                self._alone(item, self.compute_loss_alone)
        except NotFiniteError:
            return False
        return True

    def _has_gradients(self, item: Any) -> bool:
        """Whether the gradients of an item alone are finite."""
        self.model.zero_grad()
        try:
            self._alone(
                item, lambda inputs, count: self.forward_backward(self.model, inputs, count)
            )
        except NotFiniteError:
            return False
        return has_finite_gradients(list(self.model.parameters()))

    def _alone(self, item: Any, work: Callable[[Any, Any], Any]) -> None:
        inputs = self.make_batch([item])
        work(inputs, self._get_num_items_in_batch([inputs], self.args.device))

    def compute_loss_alone(self, inputs: Any, count: Any) -> None:
        """The loss of a batch that nothing is learned from."""
        with self.compute_loss_context_manager():
            self.compute_loss(self.model, self._prepare_inputs(inputs), num_items_in_batch=count)

    @property
    def evaluation_batch_size(self) -> int:
        """Rows that are evaluated at once."""
        return self.in_pieces.size(EVALUATION, self.in_pieces.size())

    def evaluation_batches(self, rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """This process' held-out rows, as many at a time as memory allows; which they are does not depend on that."""
        whole, team = self.graft_run.spec.hyperparameters.micro_batch_size, self.evaluation_team
        size = self.evaluation_batch_size
        for start in range(team.rank * whole, len(rows), team.size * whole):
            part = rows[start : start + whole]
            yield from (part[at : at + size] for at in range(0, len(part), size))

    def _evaluate(self, *arguments: Any, **named: Any) -> dict[str, float]:
        usual = super()._evaluate
        found = self.evaluate_with_room(lambda: usual(*arguments, **named))
        self.control.should_evaluate = False
        return found or {}

    def evaluate_with_room(self, work: Callable[[], T]) -> T | None:
        """An evaluation, in smaller batches when memory runs out; None, in words, when one row is too many.

        It is begun again from its beginning; evaluation_batches() gives less at a time.
        """
        where = f"in the evaluation after step {self.state.global_step}"
        while True:
            with self.accelerator.autocast():
                found, why = out_of_memory_words(work)
            if not why:
                return found
            if self.sharding.evaluates_together:
                # Nor can one process make its passes again while the others wait.
                raise OutOfMemoryError(f"Memory ran out {where} ({why}).")
            try:
                self.in_pieces.halve(EVALUATION, where, why, "", self.evaluation_batch_size)
            except OutOfMemoryError as error:
                if not self.graft_run.team.alone:
                    raise
                self.graft_run.progress.say(
                    f"{error}It is left out; the training goes on, and its result is not lost. "
                    f"{what_helps(self.graft_run.spec)}"
                )
                return None


def _sequences(batch: Any) -> int:
    source = batch.get(SOURCE) if isinstance(batch, dict) else None
    return len(source.items) if source else len(batch)
