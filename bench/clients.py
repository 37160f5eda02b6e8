"""Load in a process of its own, while a server has its turn; and the words that it asks with."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from bench.harness import Measurement
from bench.processes import REPOSITORY, ServerProcess

WORDS = ("the", "cat", "sees", "a", "red", "house", "and", "asks", "where", "doors", "were", "left")
_TIMEOUT_S = 300


def run_client(server: ServerProcess, module: str, *arguments: str) -> Measurement:
    """What `python -m module arguments` prints as JSON in its last line, in the server's turn.

    Raises:
        RuntimeError: it failed; with the end of what it and the server said.
    """
    path = os.pathsep.join([str(REPOSITORY / "sdk"), str(REPOSITORY)])
    with server.turn():
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{module} failed:\n{done.stderr[-3000:]}\nIts server: {server.end()}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures
