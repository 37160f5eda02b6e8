"""Workers that have read their libraries before there is a job: half of the time to a first step is that.

One waits for each free place, as far as it is told; it ends by itself when this process does, because its
input ends then.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from services.common.logs import get_logger

COMMAND = (sys.executable, "-m", "services.trainer.run.warm")
# What one takes before it has loaded a model, with room for the services beside it.
_NEEDED_BYTES = 2 * 1024**3
_END_S = 5.0


class WarmWorkers:
    """Processes that wait for a job.

    Args:
        most: at any time; 0 for none.
        environment: what they inherit.
        command: what they are.
    """

    def __init__(
        self, most: int, environment: Mapping[str, str], command: Sequence[str] = COMMAND
    ) -> None:
        self._most, self._environment, self._command = most, environment, tuple(command)
        # By the devices that they see, which cannot be changed once torch has looked at them.
        self._waiting: dict[str, subprocess.Popen[bytes]] = {}

    def prepare(self, variables: Mapping[str, str]) -> None:
        """Has one wait for a job with these variables, where there is room. One that has died is replaced."""
        devices = variables["CUDA_VISIBLE_DEVICES"]
        self._bury()
        if devices in self._waiting or len(self._waiting) >= self._most or not _has_room():
            return
        self._waiting[devices] = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**self._environment, **variables},
            start_new_session=True,
        )

    def take(self, devices: str) -> subprocess.Popen[bytes] | None:
        """One that waits and sees these devices; it is the caller's from now on."""
        self._bury()
        return self._waiting.pop(devices, None)

    def close(self) -> None:
        """Ends those that wait; there will be no others."""
        self._most = 0
        for process in self._waiting.values():
            process.kill()
            assert process.stdin is not None
            process.stdin.close()
            process.wait(_END_S)
        self._waiting.clear()

    def _bury(self) -> None:
        for devices, process in list(self._waiting.items()):
            code = process.poll()
            if code is not None:
                get_logger().warning("a waiting worker has ended", exit_code=code)
                assert process.stdin is not None
                process.stdin.close()
                del self._waiting[devices]


def give(
    process: subprocess.Popen[bytes],
    arguments: Sequence[str],
    variables: Mapping[str, str],
    log: Path,
) -> bool:
    """Gives a waiting process its job; false when it has died."""
    job = {"arguments": arguments, "environment": dict(variables), "log": str(log)}
    assert process.stdin is not None
    try:
        with process.stdin:
            process.stdin.write(json.dumps(job).encode() + b"\n")
    except BrokenPipeError:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
        return False
    return True


def _has_room() -> bool:
    return bool(psutil.virtual_memory().available >= _NEEDED_BYTES)
