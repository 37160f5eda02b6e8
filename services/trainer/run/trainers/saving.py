"""What of a trainer goes into a checkpoint: the method's state, optimizer, schedule, random numbers and counts.

The files are those that transformers' Trainer reads when it goes on.
"""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from services.trainer.run.progress import PROGRESS_FILE
from services.trainer.run.snapshots import Content, Snapshot, State
from services.trainer.spec import Checkpointing

_RANDOM = "rng_state.pth"


def take_snapshot(trainer: Any) -> Snapshot:
    """The checkpoint of a trainer at a step's end; its tensors are the live ones."""
    run = trainer.graft_run
    files: dict[str, Content] = {
        **run.method.checkpoint_files(trainer.model),
        OPTIMIZER_NAME: State(trainer.optimizer.state_dict()),
        SCHEDULER_NAME: State(trainer.lr_scheduler.state_dict()),
        _RANDOM: State(_random_state()),
        TRAINER_STATE_NAME: json.dumps(dataclasses.asdict(trainer.state), sort_keys=True).encode(),
        PROGRESS_FILE: run.progress.to_json(),
    }
    scaler = getattr(trainer.accelerator, "scaler", None)
    if scaler is not None:
        files[SCALER_NAME] = State(scaler.state_dict())
    return Snapshot(files)


def _random_state() -> dict[str, Any]:
    """Of everything that draws random numbers in this process."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.random.get_rng_state()
    return states


class Schedule:
    """When a checkpoint is due: after so many steps, or so much time.

    Args:
        spec: what the job says of it.
        clock: seconds, which only grow.
    """

    def __init__(self, spec: Checkpointing, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_steps = spec.every_steps
        self._every_s = spec.every_s
        self._clock = clock
        self._last_s = clock()

    @property
    def by_time(self) -> bool:
        """Whether processes may differ on what is due."""
        return self._every_s > 0

    def begin(self) -> None:
        """Training begins, or a checkpoint was written: time is counted from now."""
        self._last_s = self._clock()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due at a step's end."""
        if self._every_steps and step % self._every_steps == 0:
            return True
        return self.by_time and self._clock() - self._last_s >= self._every_s
