"""Starts the trainer: `python -m services.trainer`, configured by GRAFT_TRAINER_* variables."""

from __future__ import annotations

import sys

from services.common.main import run_service
from services.trainer.config import TrainerSettings
from services.trainer.server import TrainerServer

if __name__ == "__main__":
    sys.exit(run_service("trainer", TrainerSettings, TrainerServer, sys.argv[1:]))
