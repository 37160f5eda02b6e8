"""A line that tells what is being done meanwhile, where there is somebody to see it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.status import Status

from graft.cli.output import Output


class Waiting:
    """Around what is waited for."""

    def __init__(self, out: Output) -> None:
        self._status = Status("starting", console=out.console) if out.live else None

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    @property
    def shown(self) -> bool:
        """Whether there is such a line."""
        return self._status is not None

    def show(self, stage: str) -> None:
        """Takes the next stage."""
        if self._status is not None:
            self._status.update(stage)
