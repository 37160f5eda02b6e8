"""The processes that train one job together, on one machine or several, each on its own part of every step.

A step is as a single process with as many more accumulated batches would do it: gradients are summed once per
step, before they are clipped. That works with every method, because nothing wraps the model. Here is a process
alone, and no torch; joined_team.py has several.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class Team:
    """One process among those of its job; by itself, unless a subclass says otherwise.

    Args:
        rank: of this process, from 0; the first one reports, keeps checkpoints and publishes.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @property
    def alone(self) -> bool:
        """Whether this process is the only one."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sums of all processes' numbers; each gives as many.

        Raises:
            PeerLostError: another process is gone; so do all others.
        """
        return list(numbers)

    def sum_gradients(self, parameters: Iterable[Any], factor: float) -> None:
        """Makes each parameter's gradient the factor times the sum of all processes'; a missing one counts as 0."""

    def begin_alike(self, parameters: Iterable[Any]) -> None:
        """Gives every process the first one's parameters."""

    def tell(self, what: Any) -> Any:
        """What the first process says, in every process; a value that JSON has."""
        return what

    def ask_all(self, what: Any) -> list[Any]:
        """What every process says, by rank; a value that JSON has."""
        return [what]

    def share_folder(self, folder: Path) -> None:
        """Writes what is in the first process' folder to every other's; the path may differ."""

    def collect_folder(self, folder: Path) -> None:
        """Writes what is in every other process' folder to the first one's; the path may differ."""

    def fail(self, code: int, message: str) -> None:
        """Tells the others why this process ends, before it does: they would only see that it is gone."""

    def cause_of(self, error: BaseException) -> BaseException:
        """What an error that comes of another process' end comes of; the error itself, where nobody said."""
        return error

    def end(self) -> None:
        """Says that all is done: what the others wait for."""

    def wait_for_end(self) -> None:
        """Waits until the first process has brought the result to its end, however long that takes."""
