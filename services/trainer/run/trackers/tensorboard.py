"""Event files for TensorBoard, through tensorboardX."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.trainer.run.trackers.base import About, Tracker


class TensorBoardTracker(Tracker):
    """Writes into a folder; each attempt a file, which takes the place of what an earlier one wrote of the same steps.

    Args:
        folder: of the job.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def start(self, about: About, first_step: int) -> None:
        from tensorboardX import SummaryWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        self._writer = SummaryWriter(
            str(self._folder),
            purge_step=first_step + 1 if about.attempt > 1 else None,
            max_queue=100,
        )
        if about.attempt == 1:
            self._writer.add_text("spec", f"```\n{about.spec_json}\n```")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self, succeeded: bool) -> None:
        if self._writer is not None:
            self._writer.close()
