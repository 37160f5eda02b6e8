"""A run in Weights & Biases, through its own package; its key comes from the environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graft.digests import digest_bytes

from services.trainer.run.trackers.base import About, Tracker
from services.trainer.spec.reporting import WeightsAndBiases


class WeightsAndBiasesTracker(Tracker):
    """One run for a job, whatever attempt writes it.

    Args:
        settings: as the spec has them.
        folder: for its files, which offline are all there is.
    """

    name = "Weights & Biases"

    def __init__(self, settings: WeightsAndBiases, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._run: Any = None

    def start(self, about: About, first_step: int) -> None:
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        settings = self._settings
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity or None,
            name=settings.run_name or about.job,
            id=digest_bytes(about.job.encode()).removeprefix("sha256:")[:16],
            resume="allow" if settings.mode == "online" else None,
            mode="online" if settings.mode == "online" else "offline",
            dir=str(self._folder),
            config=json.loads(about.spec_json),
            # It shall neither look into this process nor write to its output.
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
            ),
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({**figures, "step": step})

    def close(self, succeeded: bool) -> None:
        if self._run is not None:
            import wandb

            self._run.finish(exit_code=0 if succeeded else 1)
            # Its files are written by a process of its own, which this one does not outlive by itself.
            wandb.teardown()
