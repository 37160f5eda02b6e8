"""Leaves a worker's last report where it ran, so that its end is known also when nobody listened.

In a pod that is the termination message, which Kubernetes keeps in the pod's status.
"""

from __future__ import annotations

import sys
from pathlib import Path

from google.protobuf import json_format
from graft.trainer.v1.worker_service_pb2 import Finished

from services.trainer.run.exits import ExitCode

# Kubernetes keeps 4,096 bytes of a termination message; a letter may take six in JSON.
_LONGEST_MESSAGE = 600


def leave_report(end_file: Path | None, code: ExitCode, finished: Finished) -> None:
    """Writes the report as protobuf JSON; a file that cannot be written costs no result.

    Of several processes in a pod the one speaks that knows a cause of its own.
    """
    if end_file is None:
        return
    short = Finished()
    short.CopyFrom(finished)
    short.message = finished.message[:_LONGEST_MESSAGE]
    suffered = code in (ExitCode.PREEMPTED, ExitCode.INTERNAL)
    try:
        if suffered and end_file.exists() and end_file.stat().st_size:
            return
        end_file.write_text(json_format.MessageToJson(short, indent=None), "utf-8")
    except OSError as error:
        print(f"The last report could not be left in {end_file}: {error}", file=sys.stderr)
