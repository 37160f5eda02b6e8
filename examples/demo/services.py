"""Graft's services for the length of the demo, started by `graft up` as a person would."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import graft

_START_TIMEOUT_S = 900


@asynccontextmanager
async def running_services(home: Path, base: Path) -> AsyncIterator[graft.Client]:
    """Runs registry, trainer and inference with their data in home; yields a client of theirs.

    Raises:
        RuntimeError: they did not come up; what they wrote is on standard error.
    """
    command = [sys.executable, "-m", "graft.cli", "up", "--json", "--home", str(home)]
    command += ["--base", str(base), "--slots", "2", "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    try:
        registry, trainer, inference = await _addresses(process)
        async with graft.Client(
            registry=registry, trainer=trainer, inference=inference, actor="demo"
        ) as client:
            yield client
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def _addresses(process: asyncio.subprocess.Process) -> tuple[str, str, str]:
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), _START_TIMEOUT_S)
    if not line:
        raise RuntimeError(f"graft up ended with exit code {await process.wait()}")
    ready = json.loads(line)
    return ready["registry"], ready["trainer"], ready["inference"]
