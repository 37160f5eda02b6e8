"""python -m services.trainer.run.warm: a worker that has read its libraries and waits for a job, or for the end of its input.

What comes before a worker's first step is mostly Python reading libraries. The job comes as one line of
JSON: the worker's arguments, its environment, and the file that its output goes to. Only for jobs that
lean.may_start_warm() lets: what was imported, and under which settings, cannot be changed any more.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from services.trainer.run.lean import hide_unused, quiet_libraries, read_libraries


def wait() -> dict[str, Any] | None:
    """Reads the libraries, then waits for a job; None when there will be none."""
    quiet_libraries(hub=False)
    hide_unused()
    read_libraries()
    line = sys.stdin.buffer.readline()
    job: dict[str, Any] | None = json.loads(line) if line.endswith(b"\n") else None
    return job


def become(job: dict[str, Any]) -> list[str]:
    """Takes the job's environment and log; returns the worker's arguments."""
    import torch

    log = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    for descriptor in (log, nothing):
        os.close(descriptor)
    os.environ.update(job["environment"])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return list(job["arguments"])


if __name__ == "__main__":
    from services.trainer.run.__main__ import run_to_end

    job = wait()
    if job is not None:
        run_to_end(become(job))
