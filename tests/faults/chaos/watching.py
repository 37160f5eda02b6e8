"""What a service has taken of its machine: this process and the engine's, so that growth can be seen."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import time
from dataclasses import dataclass, fields

import psutil

from tests.faults.chaos.service import Chaos

MIB = 1024 * 1024
# Calls that are just ending; a leak would be one for each of hundreds of requests.
_PASSING = {"tasks": 8, "files": 4}
_MOST_THREADS = min(32, (os.cpu_count() or 1) + 4)


@dataclass(frozen=True, slots=True)
class Taken:
    """At one moment, of both processes together; tasks are those of the event loop."""

    memory_bytes: int
    threads: int
    files: int
    series: int
    tasks: int
    folders: int

    def growth_since(self, before: Taken, memory_bytes: int) -> list[str]:
        """What there is more of; so many bytes of memory are the allocator's."""
        grown = []
        for each in fields(self):
            was, now = getattr(before, each.name), getattr(self, each.name)
            allowed = memory_bytes if each.name == "memory_bytes" else _PASSING.get(each.name, 0)
            if now > was + allowed:
                grown.append(f"{each.name}: {was}, then {now}")
        return grown


async def taken(chaos: Chaos) -> Taken:
    """Now, once nothing is asked and nothing waits to be freed."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    own = psutil.Process()
    processes = [own, *own.children(recursive=True)]
    registry = chaos.running.server.metrics_registry
    cache = chaos.running.folder / "data/inference/adapters"
    return Taken(
        memory_bytes=sum(each.memory_info().rss for each in processes),
        threads=sum(each.num_threads() for each in processes),
        files=sum(each.num_fds() for each in processes),
        series=sum(len(family.samples) for family in registry.collect()),
        tasks=len(asyncio.all_tasks()),
        folders=len(list(cache.iterdir())),
    )


async def fill_thread_pool() -> None:
    """Has asyncio's pool of threads as large as it gets, so that it does not grow later."""
    await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.05) for _ in range(_MOST_THREADS)))
