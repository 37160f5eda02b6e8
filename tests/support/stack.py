"""The whole of Graft as a person starts it: `graft up` in a process of its own, and its CLI."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.models import REPOSITORY

_START_TIMEOUT_S = 600
_CALL_TIMEOUT_S = 600


def environment(home: Path, **extra: str) -> dict[str, str]:
    """Variables for a process of ours whose data is in home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}
    paths = os.pathsep.join([str(REPOSITORY / "sdk"), str(REPOSITORY)])
    # No process that waits for the next job takes time from the tests.
    usual = {"NO_COLOR": "1", "GRAFT_TRAINER_WARM_WORKERS": "0"}
    return {**kept, "PYTHONPATH": paths, "GRAFT_HOME": str(home), **usual, **extra}


@dataclass(frozen=True, slots=True)
class Result:
    """What a command wrote and how it ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Its last line as JSON."""
        return json.loads(self.out.strip().splitlines()[-1])

    def lines(self) -> list[dict[str, Any]]:
        """Each of its lines as JSON."""
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]


@dataclass(frozen=True, slots=True)
class Stack:
    """Running services: their addresses, their data, and the process of `graft up`."""

    home: Path
    registry: str
    trainer: str
    inference: str
    process: subprocess.Popen[str]

    def graft(self, *arguments: str | Path, **extra: str) -> Result:
        """Runs `graft ARGUMENTS` against these services."""
        return run_graft(self.home, *arguments, **extra)

    def stop(self) -> int:
        """Asks `graft up` to stop, and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_START_TIMEOUT_S)


def run_graft(home: Path, *arguments: str | Path, **extra: str) -> Result:
    """Runs `graft ARGUMENTS` to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "graft.cli", *map(str, arguments)],
        env=environment(home, **extra),
        capture_output=True,
        text=True,
        timeout=_CALL_TIMEOUT_S,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@contextmanager
def graft_up(home: Path, *arguments: str | Path, **extra: str) -> Iterator[Stack]:
    """Runs `graft up ARGUMENTS` on free ports until the block ends."""
    command = [sys.executable, "-m", "graft.cli", "up", "--json", "--port", "0"]
    with (home / "up.log").open("a") as log:
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            env=environment(home, **extra),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    timer = threading.Timer(_START_TIMEOUT_S, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        timer.cancel()
        assert line, (home / "up.log").read_text()[-4000:]
        ready = json.loads(line)
        stack = Stack(
            home, ready["registry"], ready["trainer"], ready.get("inference") or "", process
        )
        yield stack
        assert stack.stop() == 0
    finally:
        timer.cancel()
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=_START_TIMEOUT_S)
