"""Runs work of ours in a process of its own: it neither holds up the service nor takes it along when memory runs out.

The process reads its request from standard input and writes JSON lines: {"progress": ...} while it works,
and at last {"result": ...} or {"error": ...}. Ending the iteration ends the process.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

from graft.errors import GraftError, Reason

_LONGEST_LINE = 256 * 1024 * 1024
_KEPT_ERROR_BYTES = 64 * 1024


async def run_aside(
    module: str, request: str, timeout_s: float, *arguments: str
) -> AsyncGenerator[dict[str, Any], None]:
    """Yields the progress of `python -m module`, each a mapping, and its result last.

    Raises:
        GraftError: what the process says is wrong; INTERNAL when it breaks, or takes longer than the timeout.
    """
    # A file, not a pipe: nothing can go wrong while a request is written to a process that ends early.
    with tempfile.TemporaryFile() as stdin:
        stdin.write(request.encode())
        stdin.seek(0)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *arguments,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
        )
    errors = asyncio.create_task(_tail(process))
    give_up_at = time.monotonic() + timeout_s
    try:
        # Its own loop over lines: a timeout around a yield would count the reader's time, too.
        while line := await _line(process, give_up_at):
            message = json.loads(line)
            if (error := message.get("error")) is not None:
                raise _as_error(error)
            yield message
            if "result" in message:
                return
        code = await process.wait()
        raise _broken(f"it ended with code {code}: {_last_line(await errors)}")
    except TimeoutError:
        raise _broken(f"it took more than {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        errors.cancel()


async def _line(process: asyncio.subprocess.Process, give_up_at: float) -> bytes:
    assert process.stdout is not None
    async with asyncio.timeout(give_up_at - time.monotonic()):
        return await process.stdout.readline()


def serve_aside(work: Callable[[str, Callable[[dict[str, Any]], None]], dict[str, Any]]) -> None:
    """The process' side: does work(request, report_progress) and writes what comes of it."""

    def write(message: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    try:
        result = work(sys.stdin.read(), lambda progress: write({"progress": progress}))
    except GraftError as error:
        said = {"message": error.message, "next_step": error.next_step}
        write({"error": {"reason": error.reason.value, "metadata": error.metadata, **said}})
    else:
        write({"result": result})


async def _tail(process: asyncio.subprocess.Process) -> bytes:
    """The end of what it writes to standard error, which must be read lest it waits."""
    assert process.stderr is not None
    kept = b""
    while part := await process.stderr.read(8192):
        kept = (kept + part)[-_KEPT_ERROR_BYTES:]
    return kept


def _as_error(error: dict[str, Any]) -> GraftError:
    return GraftError(
        Reason(error["reason"]),
        error["message"],
        next_step=error["next_step"],
        **error.get("metadata", {}),
    )


def _broken(why: str) -> GraftError:
    return GraftError(
        Reason.INTERNAL,
        f"The check of the job could not be completed: {why}",
        next_step="Try it again; if it stays so, look into the trainer's log.",
    )


def _last_line(errors: bytes) -> str:
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it wrote nothing"
