"""Which test files run after each other in one process, and which of them first, when there are several processes.

Files that use one expensive thing of the session go to one process, so that it is started once. The long ones
come first, so that at the end no process waits for another.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from xdist.scheduler import LoadScopeScheduling

_ROOT = Path(__file__).parents[2]
_ENGINE, _STACK = "the shared engine", "one running Graft"
_OF_THE_STACK = ("tests/e2e/", "tests/faults/test_bad_input.py")
_LONG = ("tests/faults/", "tests/unit/trainer_worker/", "tests/unit/k8s_jobs/", "tests/contracts/")


@cache
def group(file: str) -> str:
    """What decides on a file's process: what it shares with other files, or itself."""
    if file.startswith(_OF_THE_STACK):
        return _STACK
    return _ENGINE if "vllm_engine" in (_ROOT / file).read_text("utf-8") else file


def turn(file: str) -> int:
    """When a file is begun; the lowest first."""
    if group(file) != file:
        return (_STACK, _ENGINE).index(group(file))
    return 2 if file.startswith(_LONG) else 3


class Spread(LoadScopeScheduling):  # type: ignore[misc]
    """Gives each process the files of one group after the other, in the order of their turns."""

    def __init__(self, config: Any, log: Any = None) -> None:
        # Not by the number of tests, which says nothing of their length.
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return group(file_of(nodeid))


def file_of(nodeid: str) -> str:
    """The file of a test, from the project's root."""
    return nodeid.split("::", 1)[0]
