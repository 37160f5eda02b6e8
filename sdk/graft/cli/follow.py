"""Follows a job on the terminal until it ends, and asks on Ctrl-C whether to detach or cancel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from enum import Enum
from typing import Any

from graft.cli.output import Output
from graft.cli.session import EXIT_INTERRUPTED, EXIT_OTHER
from graft.cli.views import JobView, make_view
from graft.errors import ConflictError
from graft.jobs import JobHandle
from graft.results import FailureCause, Job, JobState, short_id

EXIT_CANCELLED = 79
_EXIT_CODES = {
    FailureCause.BAD_CONFIG: 64,
    FailureCause.BAD_DATA: 65,
    FailureCause.OUT_OF_MEMORY: 66,
    FailureCause.REFUSED: 67,
    FailureCause.INTERNAL: 70,
}
_QUESTION = "\nThe job can go on without you. [d]etach, [c]ancel the job, or [k]eep watching? "


class Choice(Enum):
    """What somebody wants who pressed Ctrl-C."""

    DETACH = "d"
    CANCEL = "c"
    KEEP = "k"


def exit_code_of(job: Job) -> int:
    """0 succeeded, the worker's codes for failures (see the README), 79 cancelled."""
    if job.state is JobState.SUCCEEDED:
        return 0
    if job.state is JobState.CANCELLED:
        return EXIT_CANCELLED
    return _EXIT_CODES.get(job.failure_cause, EXIT_OTHER) if job.failure_cause else EXIT_OTHER


async def follow(out: Output, handle: JobHandle, *, may_cancel: bool) -> int:
    """Shows a job until it ends or somebody turns away.

    Args:
        out: where to.
        handle: the job.
        may_cancel: ask on Ctrl-C whether to cancel; otherwise Ctrl-C only stops watching.

    Returns:
        The exit code.

    Raises:
        GraftError: JOB_NOT_FOUND; UNAVAILABLE when the trainer stays away.
    """
    view = make_view(out)
    try:
        code = await _Follower(out, handle, view, may_cancel).run()
    finally:
        view.close()
    if code is not None:
        return code
    job = await handle.get()
    report(out, job)
    return exit_code_of(job)


class _Follower:
    def __init__(self, out: Output, handle: JobHandle, view: JobView, may_cancel: bool) -> None:
        self._out, self._handle, self._view = out, handle, view
        self._asks = may_cancel and not out.as_json and sys.stdin.isatty()
        self._interrupted = asyncio.Event()
        self._cancelled = False

    async def run(self) -> int | None:
        """The exit code of somebody who turned away; None when the job ended."""
        with _on_interrupt(self._interrupted):
            pump = asyncio.create_task(self._pump())
            try:
                while await _first(pump, self._interrupted.wait()):
                    self._interrupted.clear()
                    code = await self._interruption(pump)
                    if code is not None:
                        return code
                pump.result()
                return None
            finally:
                pump.cancel()
                with contextlib.suppress(BaseException):
                    await pump

    async def _pump(self) -> None:
        async for event in self._handle.events():
            self._view.show(event)

    async def _interruption(self, pump: asyncio.Task[None]) -> int | None:
        if not self._asks or self._cancelled:
            self._detached()
            return EXIT_INTERRUPTED
        self._view.pause()
        choice = await self._ask(pump)
        if choice is Choice.DETACH:
            self._detached()
            return 0
        if choice is Choice.CANCEL:
            self._cancelled = True
            # It may have ended while somebody thought about it.
            with contextlib.suppress(ConflictError):
                await self._handle.cancel("cancelled from the command line")
            self._out.note("Cancelling; it stops within a step.")
        self._view.resume()
        return None

    async def _ask(self, pump: asyncio.Task[None]) -> Choice:
        """The answer typed; a second Ctrl-C or the end of input detaches, the job's end keeps."""
        while True:
            sys.stdout.write(_QUESTION)
            sys.stdout.flush()
            line = asyncio.ensure_future(_read_line())
            second = asyncio.ensure_future(self._interrupted.wait())
            try:
                await asyncio.wait({line, second, pump}, return_when=asyncio.FIRST_COMPLETED)
                if second.done():
                    return Choice.DETACH
                if not line.done():
                    return Choice.KEEP
                text = line.result()
            finally:
                line.cancel()
                second.cancel()
            if text is None:
                return Choice.DETACH
            letter = text.strip().lower()[:1]
            if letter in {choice.value for choice in Choice}:
                return Choice(letter)

    def _detached(self) -> None:
        name = short_id(self._handle.name)
        self._out.note(f"\nThe job goes on. Watch it: graft jobs watch {name}")
        self._out.note(f"Stop it: graft jobs cancel {name}")


def report(out: Output, job: Job) -> None:
    """How a job ended, and what to do next."""
    if out.as_json:
        out.json({"event": "end", "job": job})
        return
    name = short_id(job.name)
    if job.state is JobState.SUCCEEDED and job.kind != "train":
        out.note(f"{name}: {job.version or job.message}")
        return
    if job.state is JobState.SUCCEEDED:
        adapter, number = _parts(job.version or "")
        out.note(f"{name} made {adapter}:{number}.")
        alias = job.spec.get("output", {}).get("alias", "")
        if job.message:
            out.note(job.message)
        elif alias:
            out.note(f"{adapter}@{alias} names it now. Ask it: graft chat {adapter}@{alias}")
        else:
            out.note(f"Serve it: graft adapters promote {adapter} {number}")
        return
    cause = f" ({job.failure_cause.lower().replace('_', ' ')})" if job.failure_cause else ""
    out.note(f"{name} {job.state.lower()}{cause}: {job.message or 'no reason given'}")
    if job.state is JobState.FAILED:
        out.note(f"Its log: graft jobs logs {name}")
        out.note(f"Take it up again where it failed: graft jobs retry {name}")


def _parts(version: str) -> tuple[str, str]:
    adapter, _, number = version.rpartition("/versions/")
    return short_id(adapter), number


async def _first(pump: asyncio.Task[None], other: Coroutine[Any, Any, Any]) -> bool:
    """Waits for either; says whether it was the other."""
    task = asyncio.ensure_future(other)
    await asyncio.wait({pump, task}, return_when=asyncio.FIRST_COMPLETED)
    task.cancel()
    return not pump.done()


@contextlib.contextmanager
def _on_interrupt(event: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, event.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _read_line() -> str | None:
    """A line of the terminal; None at its end. Read without a thread, so that it can be left."""
    loop, ready, fd = asyncio.get_running_loop(), asyncio.Event(), sys.stdin.fileno()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
    data = os.read(fd, 4096)
    return data.decode(errors="replace") if data else None
