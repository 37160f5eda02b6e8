"""What a trainer asks of however its model is shared; the class itself is every process holding everything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from graft.errors import GraftError, Reason

from services.trainer.run.team import Team

ZERO_PARTS, ABOUT = "zero", "about.json"


class Replicas:
    """Every process holds model, gradients and optimizer state; gradients are summed once per step.

    Nothing wraps the model, so whatever calls it and however often works.

    Args:
        team: the processes.
    """

    # Whether every process must make the same passes, so that batches of nobody's rows are gone through too.
    lockstep = False
    # Whether it puts the model where it is computed; nobody else may then move it.
    places_model = False
    # Whether every process must make the same passes of an evaluation as well.
    evaluates_together = False

    def __init__(self, team: Team) -> None:
        self.team = team

    def share(self, model: Any) -> None:
        """Takes the model, once every process has the same numbers."""

    def share_optimizer(self, optimizer: Any) -> Any:
        """What the loop shall use as its optimizer."""
        return optimizer

    def backward(self, usual: Callable[..., None]) -> Callable[..., None]:
        """What the loop shall call for a loss' backward pass."""
        return usual

    def passes(self, last: bool) -> AbstractContextManager[None]:
        """Around the forward and backward pass of a batch; last: of its step."""
        return nullcontext()

    def call(self, work: Callable[[], Any]) -> Any:
        """Does work that goes through the model's modules, in whatever way."""
        return work()

    def look(self, work: Callable[[], Any]) -> Any:
        """Does work that goes through the model's modules and learns nothing."""
        return self.call(work) if self.evaluates_together else work()

    def join(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Makes each parameter's gradient the sum of all processes', at a step's end."""
        self.team.sum_gradients(parameters, 1.0)

    def clip(self, usual: Callable[[], Any], parameters: list[Any], most: float) -> Any:
        """Clips by the norm of all gradients; returns that norm.

        Args:
            usual: does so where gradients are whole.
            parameters: that are trained.
            most: of the norm.
        """
        return usual()

    def last_norm(self, norm: float) -> float:
        """The norm of the step that was taken last, where clip() could not know it."""
        return norm

    @contextmanager
    def gathered(self, model: Any, optimizer: Any, everything: bool) -> Iterator[None]:
        """While inside, the first process' model and optimizer hold what they would in one process alone.

        To be entered by all; what is inside may be for the first alone.

        Args:
            optimizer: torch's; None for none.
            everything: whether frozen parameters are wanted as well.
        """
        yield

    @contextmanager
    def loading(self, model: Any) -> Iterator[None]:
        """While inside, trained parameters are whole in every process; what is written to them is kept."""
        yield

    def parts(self) -> Mapping[str, bytes]:
        """Files of the first process' checkpoint that hold what gathered() cannot make whole; to be asked inside."""
        return {}

    def check_parts(self, folder: Path) -> None:
        """Whether load_parts() can read a checkpoint.

        Raises:
            GraftError: INVALID_SPEC.
        """
        if about := parts_of(folder):
            raise not_of_these(about, self.team.size)

    def load_parts(self, folder: Path) -> None:
        """Reads what parts() gave from a checkpoint's folder."""


def parts_of(folder: Path) -> dict[str, Any]:
    """What ZeRO's part of a checkpoint says of itself; nothing where it has none."""
    path = folder / ZERO_PARTS / ABOUT
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found


def not_of_these(about: Mapping[str, Any], processes: int) -> GraftError:
    """The error of a checkpoint that only as many processes can read as have written it."""
    return GraftError(
        Reason.INVALID_SPEC,
        f"The checkpoint is of {about.get('processes', 0)} processes with ZeRO, and {processes} cannot go on from it",
        next_step="Run it with as many processes as before; resources.sharding.fsdp goes on with any number.",
        field="resources.processes_per_node",
    )
