"""A worker process that trains nothing: `stub_worker.py SCRIPT_JSON SPEC_FILE` plays a Script."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from services.trainer.launchers.scripted import Script, ScriptedWorker


async def play(script: Script) -> int:
    """One attempt, as the GRAFT_WORKER_* variables describe it."""
    worker = ScriptedWorker(
        script,
        os.environ.get("GRAFT_WORKER_TRAINER", ""),
        os.environ["GRAFT_WORKER_JOB"],
        int(os.environ["GRAFT_WORKER_ATTEMPT"]),
        os.environ["GRAFT_WORKER_TOKEN"],
        Path(os.environ["GRAFT_WORKER_DIR"]),
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.preempt)
    return await worker.run()


def main() -> None:
    """Ends with the script's exit code; vanishes by SIGKILL where the script says so."""
    print(f"attempt {os.environ['GRAFT_WORKER_ATTEMPT']} begins")
    code = asyncio.run(play(Script(**json.loads(sys.argv[1]))))
    if code < 0:
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
