"""A cluster on a thread of its own, for tests that run commands in theirs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.kube_api.cluster import Cluster, kube_cluster
from tests.support.kube_api.runs import IdleRun

_PATIENCE_S = 20.0


@contextmanager
def threaded_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster that answers while the test's own thread does something else."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    made = kube_cluster(folder, IdleRun)
    try:
        yield asyncio.run_coroutine_threadsafe(made.__aenter__(), loop).result(_PATIENCE_S)
    finally:
        ending = made.__aexit__(None, None, None)
        asyncio.run_coroutine_threadsafe(ending, loop).result(_PATIENCE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_PATIENCE_S)
        loop.close()
