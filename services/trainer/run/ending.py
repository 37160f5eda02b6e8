"""The last words of a process, where a pod's status keeps them: Kubernetes' termination message."""

from __future__ import annotations

import sys
from pathlib import Path

from google.protobuf.json_format import MessageToJson
from graft.trainer.v1.worker_service_pb2 import Finished

from services.trainer.run.exits import ExitCode

# Kubernetes keeps as many bytes of a container.
_MOST_BYTES = 4095
# Also where every letter takes two bytes or is written as six.
_MOST_MESSAGE = 600


def write_end(path: Path | None, code: ExitCode, finished: Finished) -> None:
    """Writes how an attempt ended, as the Finished message in one line of JSON; never fails.

    Of several processes in a pod the one speaks that knows a cause of its own.
    """
    if path is None:
        return
    short = Finished()
    short.CopyFrom(finished)
    short.message = finished.message[:_MOST_MESSAGE]
    line = MessageToJson(short, indent=None, preserving_proto_field_name=True).encode()
    try:
        said = path.exists() and path.stat().st_size > 0
        if not said or code not in (ExitCode.PREEMPTED, ExitCode.INTERNAL):
            path.write_bytes(line[:_MOST_BYTES] + b"\n")
    except OSError as error:
        print(f"{path} cannot be written ({error.strerror})", file=sys.stderr)
