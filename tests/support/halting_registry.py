"""A registry that is killed, as by kill -9, at the point that HALT_AT names: `python -m` this module.

The points are exact: nothing of the process runs after them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from services.common.main import run_service
from services.registry.blobs.shared import SharedUpload
from services.registry.catalogue.blob_index import BlobIndex
from services.registry.catalogue.commit_group import CommitGroup
from services.registry.catalogue.commit_queue import CommitQueue
from services.registry.config import RegistrySettings
from services.registry.objects import Objects
from services.registry.server import RegistryServer

HALT_AT = "GRAFT_TEST_HALT_AT"
# (class, method, how many calls are let through, whether the last one is made first)
POINTS: Mapping[str, tuple[type, str, int, bool]] = {
    "in mid-upload": (SharedUpload, "append", 3, True),
    "between bytes and row": (Objects, "_keep", 0, False),
    "between row and answer": (Objects, "_keep", 0, True),
    "in the commit's transaction": (CommitGroup, "store", 0, True),
    "between commit and answer": (CommitQueue, "_store", 0, True),
    "between mark and removal": (Objects, "remove", 0, False),
    "between bytes' and row's removal": (BlobIndex, "forget", 0, False),
}


def halt_at(point: str) -> None:
    """Puts the kill in place."""
    kind, name, let_through, after = POINTS[point]
    original: Callable[..., Any] = getattr(kind, name)
    calls = 0

    async def halting(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= let_through:
            return await original(*arguments)
        if after:
            await original(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed")

    setattr(kind, name, halting)


if __name__ == "__main__":
    halt_at(os.environ[HALT_AT])
    sys.exit(run_service("registry", RegistrySettings, RegistryServer, []))
