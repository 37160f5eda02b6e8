"""When this machine has time for work that nobody waits for yet. It measures; it starts nothing."""

from __future__ import annotations

import asyncio
import time

import psutil

# As long as the pauses between two phases of a start, which must not be taken for rest.
_WINDOW_S = 3.0
# Of one core: the rest is what an idle machine does beside.
_ENOUGH = 0.9


async def until_a_core_is_idle(patience_s: float = 600.0) -> None:
    """Returns when a core has rested for 3 seconds, or when the patience has ended."""
    deadline_s = time.monotonic() + patience_s
    while time.monotonic() < deadline_s:
        began_s, before_s = time.monotonic(), psutil.cpu_times().idle
        await asyncio.sleep(_WINDOW_S)
        if psutil.cpu_times().idle - before_s >= _ENOUGH * (time.monotonic() - began_s):
            return
