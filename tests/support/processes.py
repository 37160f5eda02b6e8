"""Services as processes of their own, for what only a process can suffer, and the workers they start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import psutil

from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
_START_S = 120.0


class ServiceProcess:
    """`python -m services.NAME`. Use as a context manager.

    Args:
        name: registry, trainer or inference.
        data_dir: its folder.
        module: what is run instead of services.NAME.
        settings: its settings by name; values as their environment variables hold them.
    """

    def __init__(self, name: str, data_dir: Path, module: str = "", **settings: str) -> None:
        ready = data_dir / f"{name}-ready.json"
        ready.unlink(missing_ok=True)
        data_dir.mkdir(parents=True, exist_ok=True)
        self.log_path = data_dir / f"{name}.log"
        variables = {"data_dir": str(data_dir), "ready_file": str(ready)} | settings
        prefix = f"GRAFT_{name.upper()}_"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module or f"services.{name}"],
                cwd=ROOT,
                env=process_environment()
                | {f"{prefix}{field.upper()}": value for field, value in variables.items()},
                stderr=log,
            )
        self._ready = ready
        self.address = ""

    def wait_ready(self) -> Self:
        """Waits until it serves."""
        deadline_s = time.monotonic() + _START_S
        while not self._ready.exists() and self.process.poll() is None:
            assert time.monotonic() < deadline_s, self.log_path.read_text("utf-8")
            time.sleep(0.01)
        assert self._ready.exists(), self.log_path.read_text("utf-8")
        self.address = json.loads(self._ready.read_text("utf-8"))["address"]
        return self

    async def ready(self) -> Self:
        """wait_ready() beside others."""
        return await asyncio.to_thread(self.wait_ready)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    async def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, 60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()


def process_environment() -> dict[str, str]:
    """The environment of a service that a test starts as a process."""
    return dict(os.environ) | {"PYTHONPATH": f"{ROOT / 'sdk'}{os.pathsep}{ROOT}"}


async def halt(process: psutil.Process) -> None:
    """Suspends a process and returns when it stands still; until then other signals still come through to it."""
    process.suspend()
    await eventually(lambda: process.status() == psutil.STATUS_STOPPED, f"halt of {process}")


def worker_processes(folder: Path, job: str = "") -> list[psutil.Process]:
    """Workers of the trainer with that folder; only those of a job, given its full name."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.NoSuchProcess:
            continue
        spec = Path(line[-1]) if line else Path()
        ours = spec.name == "spec.json" and spec.is_relative_to(folder)
        if ours and spec.parent.name == (job.rpartition("/")[2] or spec.parent.name):
            found.append(process)
    return found
