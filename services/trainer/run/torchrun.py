"""python -m services.trainer.run.torchrun [torchrun's options] SPEC_FILE: the processes of one machine.

This is torchrun with the worker as its program. Unlike torchrun, which always ends with 1, it ends with the
worker's own exit code, by which a Job's podFailurePolicy and the trainer tell a bad spec from a lost machine.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Collection
from typing import Any

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, run

from services.trainer.run.exits import ExitCode

_WORKER = "services.trainer.run"
# As long as a checkpoint may take; whoever stops a pod has a shorter or longer patience of its own.
_GRACE_S = 300
# What a rank found out by itself comes before what it suffered from another's end.
_CAUSES = (
    ExitCode.BAD_CONFIG,
    ExitCode.BAD_DATA,
    ExitCode.REFUSED,
    ExitCode.OUT_OF_MEMORY,
    ExitCode.PAUSED,
    ExitCode.CANCELLED,
)


def main(arguments: list[str]) -> int:
    """Runs this machine's processes; returns the exit code that says most of how they ended."""
    parsed = get_args_parser().parse_args([*_usual_options(), *arguments])
    # torchrun reads "-m" greedily: the program is set here instead.
    parsed.training_script_args = [parsed.training_script, *parsed.training_script_args]
    parsed.training_script, parsed.module = _WORKER, True
    try:
        start: Callable[[Any], None] = run
        start(parsed)
    except ChildFailedError as error:
        return telling_code([failure.exitcode for failure in error.failures.values()])
    except SignalException as error:
        print(f"Told to stop: {signal.Signals(error.sigval).name}", file=sys.stderr)
        interrupted = error.sigval == signal.SIGINT
        return ExitCode.CANCELLED if interrupted else ExitCode.PREEMPTED
    return ExitCode.DONE


def _usual_options() -> list[str]:
    grace_s = os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT") or str(_GRACE_S)
    options = ["--max-restarts=0", f"--shutdown-timeout={grace_s}"]
    import torch

    if torch.cuda.is_available():
        # Each process sees its own card, and that one alone.
        options.append("--virtual-local-rank")
    return options


def telling_code(codes: Collection[int]) -> int:
    """The exit code of the process that ended by its own fault; negative for a signal, as subprocess has it."""
    for cause in _CAUSES:
        if cause in codes:
            return cause
    killed = [-code for code in codes if code < 0 and -code != signal.SIGTERM]
    if killed:
        # As a shell and Kubernetes write it: 137 is the kernel's for want of memory.
        return 128 + killed[0]
    return ExitCode.INTERNAL if ExitCode.INTERNAL in codes else ExitCode.PREEMPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
