"""A job done on this machine, by a worker process that ends with the command: torch stays out of the command's own.

No trainer is asked. The registry holds the versions and gets the result; interrupted, the worker keeps nothing.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from graft.cli.services import import_path
from graft.digests import canonical_json, digest_bytes
from graft.errors import GraftError, Reason
from graft.names import job_name

_MODULE = "services.trainer.run"
_STOP_S = 10.0
_LONGEST_LINE = 16 * 1024 * 1024
_LAST_LINES = 5
# Of services/trainer/run/exits.py; what else it ends with is its own failure.
_REASONS = {64: Reason.INVALID_SPEC, 65: Reason.BAD_DATA, 67: Reason.VERSION_REFUSED}


@dataclass(frozen=True, slots=True)
class Done:
    """What a worker made: a version's full name, or "" for files; and its report."""

    version: str
    report: dict[str, Any] = field(default_factory=dict)


async def run_worker(
    kind: str,
    spec: Message,
    registry: str,
    namespace: str,
    on_line: Callable[[str], None],
    work_dir: Path | None = None,
) -> Done:
    """Does one job of a kind that `python -m services.trainer.run` knows.

    Args:
        spec: the kind's message. The same one has the same job name, so that doing it again makes nothing twice.
        registry: "host:port".
        namespace: of the job and what it makes.
        on_line: gets each line for people.
        work_dir: for what the job needs meanwhile, kept afterwards; a temporary one if not given.

    Raises:
        GraftError: what the worker says is wrong; NOT_INSTALLED, when there is none on this machine.
    """
    if importlib.util.find_spec("services") is None or importlib.util.find_spec("torch") is None:
        raise GraftError(
            Reason.NOT_INSTALLED,
            "This machine has no worker to do it with",
            next_step="Install graft-adapters[worker], or write the spec with --write-spec and start it where "
            "one is: graft jobs submit SPEC --kind merge.",
        )
    name = f"{kind}-{digest_bytes(canonical_json(spec)).removeprefix('sha256:')[:12]}"
    kept = nullcontext(work_dir) if work_dir else tempfile.TemporaryDirectory(prefix="graft-job-")
    with kept as given:
        folder = Path(given).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        for stale in ("report.json", "error.json"):
            (folder / stale).unlink(missing_ok=True)
        path = folder / "spec.json"
        path.write_text(MessageToJson(spec, preserving_proto_field_name=True), "utf-8")
        environment = {
            **os.environ,
            "GRAFT_WORKER_DIR": str(folder),
            "GRAFT_WORKER_JOB": job_name(namespace, name),
            "GRAFT_WORKER_REGISTRY": registry,
            "PYTHONPATH": import_path(),
            "PYTHONUNBUFFERED": "1",
        }
        with (folder / "stderr").open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", _MODULE, kind, str(path),
                env=environment, stdout=asyncio.subprocess.PIPE, stderr=errors, limit=_LONGEST_LINE,
            )  # fmt: skip
        finished = await _follow(process, on_line)
        if process.returncode:
            raise _failed(process.returncode, finished, folder)
        return Done(str(finished.get("version", "")), _read(folder / "report.json"))


async def _follow(
    process: asyncio.subprocess.Process, on_line: Callable[[str], None]
) -> dict[str, Any]:
    """The worker's last report; ended by somebody, the worker ends, too."""
    finished: dict[str, Any] = {}
    assert process.stdout is not None
    try:
        while line := await process.stdout.readline():
            with suppress(ValueError):
                event = json.loads(line)
                if "log" in event:
                    on_line(event["log"])
                finished = event.get("finished", finished)
        await process.wait()
    finally:
        if process.returncode is None:
            await _stop(process)
    return finished


async def _stop(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _failed(code: int, finished: dict[str, Any], folder: Path) -> GraftError:
    """The worker's own error where it left one; else by its exit code."""
    said = _read(folder / "error.json")
    if said:
        return GraftError(
            Reason(said["reason"]),
            said["message"],
            next_step=said["next_step"],
            **said.get("metadata", {}),
        )
    message = str(finished.get("message", "")).strip()
    if message:
        step = "Change the spec." if code == 64 else "Try it again."
        return GraftError(_REASONS.get(code, Reason.INTERNAL), message, next_step=step)
    tail = (folder / "stderr").read_text("utf-8", "replace").strip().splitlines()[-_LAST_LINES:]
    return GraftError(
        Reason.INTERNAL,
        f"The worker ended with code {code}: {' '.join(tail) or 'it said nothing'}",
        next_step="If memory ran out, do it on a machine with more; keep its files with --work-dir to look at them.",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found
