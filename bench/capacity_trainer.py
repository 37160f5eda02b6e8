"""A trainer whose workers are scripted tasks of its own process, for bench.capacity: no torch, no training.

`python -m bench.capacity_trainer FOLDER SLOTS STEP_S` serves until SIGTERM; its address is in
FOLDER/ready.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvloop

from services.common.logs import configure_logs
from services.common.server import serve_until_signal
from services.trainer.config import TrainerSettings
from services.trainer.launchers.fake import FakeLauncher
from services.trainer.launchers.scripted import Script
from services.trainer.preflight.base import NoPreflight
from services.trainer.server import TrainerServer

# As a real worker's sign of life.
_HEARTBEAT_S = 2.0
_STEPS = 1_000_000


async def _serve(folder: Path, slots: int, step_s: float) -> None:
    script = Script(steps=_STEPS, step_s=step_s, heartbeat_s=_HEARTBEAT_S)
    server = TrainerServer(
        TrainerSettings(
            data_dir=folder, slots=slots, ready_file=folder / "ready.json", drain_timeout_s=1.0
        ),
        FakeLauncher(lambda _: script),
        NoPreflight(),
    )
    await serve_until_signal(server.start, server.stop)


if __name__ == "__main__":
    configure_logs("trainer", "WARNING", "json")
    uvloop.run(_serve(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
