"""The inference service as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.models import REPOSITORY


@asynccontextmanager
async def inference_process(base: Path, folder: Path, **settings: object) -> AsyncIterator[Process]:
    """Starts it, with its log in folder/log; what is left of it at the end is killed."""
    values = {"base": base, "data_dir": folder, **settings}
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "sdk"), str(REPOSITORY)]),
        **{f"GRAFT_INFERENCE_{name.upper()}": str(value) for name, value in values.items()},
    }
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "services.inference"),
            env=env,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            # Its group: an engine is a process too.
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def exit_code(process: Process) -> int:
    """What it ends with when it is told to end."""
    process.send_signal(signal.SIGTERM)
    return await asyncio.wait_for(process.wait(), 120)
