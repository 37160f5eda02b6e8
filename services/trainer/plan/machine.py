"""The machine that plans: how much memory a job can have. Cards are looked up by run/plan.py."""

from __future__ import annotations

from pathlib import Path

import psutil

from services.trainer.plan.domain import Hardware

_CGROUP_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def this_cpu() -> Hardware:
    """This machine without cards: its memory, or its container's."""
    memory = min([psutil.virtual_memory().total, *_limits()])
    cores = psutil.cpu_count() or 1
    return Hardware(f"CPU, {cores} cores", memory, cuda=False, tflops=0.0, here=True)


def _limits() -> list[int]:
    found = []
    for path in _CGROUP_LIMITS:
        try:
            found.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # There is no limit, or it is "max".
            continue
    return found
