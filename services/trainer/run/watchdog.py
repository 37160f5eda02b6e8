"""Ends a worker that does not get on, with the stacks of all its threads in its log.

Where there is a trainer, it decides, by the worker's heartbeats. A worker by itself, as the pod of a Job or from a
shell, watches over itself: here.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

from services.trainer.run.exits import ExitCode
from services.trainer.run.pulse import Pulse
from services.trainer.stall import StallLimits

_LOOK_S = 1.0


def end_stalled(reason: str) -> None:
    """Writes what every thread is at to standard error, and ends the process at once.

    What hangs obeys no signal; the last checkpoint is whole, and the next attempt goes on from it.
    """
    print(f"Stalled: {reason}. What every thread is at:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    print(f"Ended, because it stalled: {reason}.", file=sys.stderr, flush=True)
    os._exit(ExitCode.STALLED)


def watch_over(
    pulse: Pulse, limits: StallLimits, end: Callable[[str], None] = end_stalled
) -> threading.Thread:
    """Ends this process when a step takes longer than it may; the thread that watches."""

    def watch() -> None:
        while not (reason := limits.stalled(pulse.beat())):
            time.sleep(min(_LOOK_S, max(limits.least_s / 4, 0.01)))
        end(reason)

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    return thread
