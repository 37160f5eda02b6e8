"""Starts the trainer: `python -m services.trainer`, configured by GRAFT_TRAINER_* variables."""

from __future__ import annotations

import sys

import uvloop
from graft.errors import GraftError

from services.common.logs import configure_logs
from services.common.server import serve_until_signal
from services.trainer.config import TrainerSettings
from services.trainer.server import TrainerServer


def main() -> None:
    """Serves until SIGTERM or SIGINT; exit code 0 after a drain, 1 when it cannot start."""
    settings = TrainerSettings()
    configure_logs("trainer", settings.log_level, settings.log_format)
    try:
        uvloop.run(_serve(settings))
    except GraftError as error:
        sys.exit(f"The trainer cannot start: {error}")


async def _serve(settings: TrainerSettings) -> None:
    server = TrainerServer(settings)
    await serve_until_signal(server.start, server.stop)


if __name__ == "__main__":
    main()
