"""Ends a process of an engine when the service that started it is gone, however that ended.

vLLM's core waits for requests for ever: killed by the system for its memory, a service would leave behind the
memory of a card and nobody to give it back.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import threading
from pathlib import Path


def end_with_ancestors(generations: int = 1) -> None:
    """Has this process killed as soon as its parent has ended, or an ancestor up to some generation.

    Not by prctl(PR_SET_PDEATHSIG), which goes by the thread that started this process: that may end any time.

    Args:
        generations: how many ancestors; 1 is the parent.
    """
    started_by = multiprocessing.parent_process()
    if started_by is not None and started_by.pid != os.getppid():  # It has ended already.
        os.kill(os.getpid(), signal.SIGKILL)
    descriptors, pid = [], os.getpid()
    for _ in range(generations):
        # In a container the service may be number 1, and what started that is out of sight: 0.
        pid = _parent(pid)
        if pid == 0:
            break
        descriptors.append(os.pidfd_open(pid))
    threading.Thread(target=_end_after, args=(descriptors,), daemon=True).start()


def _parent(pid: int) -> int:
    # The name before it is in brackets, and may hold any character.
    stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    return int(stat.rpartition(")")[2].split()[1])


def _end_after(descriptors: list[int]) -> None:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    poll.poll()
    os.kill(os.getpid(), signal.SIGKILL)
