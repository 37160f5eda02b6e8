"""Watches one running worker until it is gone: its signs of life, its stream, and the times it may take."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field
from typing import Any

from services.trainer.jobs import Attempt
from services.trainer.launchers.base import Worker
from services.trainer.session import Cancel, EndStalled, Link, Preempt
from services.trainer.stall import Beat, StallLimits

# A worker may end right after its last report; the report is still read from its stream.
_LAST_WORDS_S = 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a worker may take for what, in seconds.

    Args:
        start_timeout_s: from its start until its first sign of life.
        timeout_s: between two signs of life.
        cancel_grace_s: from being told to cancel until it has ended.
        exit_grace_s: from its last report until it has ended.
        stall: for a step, while it gives signs of life.
        pause_grace_s: from being told to pause until it has ended.
    """

    start_timeout_s: float = 600.0
    timeout_s: float = 60.0
    cancel_grace_s: float = 10.0
    exit_grace_s: float = 10.0
    stall: StallLimits = field(default_factory=StallLimits)
    pause_grace_s: float = 300.0


class Attendance:
    """One worker under watch.

    Args:
        attempt: what it works on.
        worker: the launcher's hold on it.
        limits: what it may take.
        adopted: whether an earlier process of the trainer started it.
    """

    def __init__(self, attempt: Attempt, worker: Worker, limits: Limits, adopted: bool) -> None:
        self.attempt = attempt
        self.worker = worker
        self.killed_because = ""
        self.preempted = False
        self._limits = limits
        self._adopted = adopted
        self._link: Link | None = None
        self._silent_since_s = time.monotonic() if worker.begun else math.inf
        known = adopted and worker.begun
        self._silence_s = limits.timeout_s if known else limits.start_timeout_s
        self._must_end_s, self._must_end_because = math.inf, ""
        self._cancel: Cancel | None = None
        self._preempt: Preempt | None = None
        self._deadline_changed = asyncio.Event()

    def seen(self, beat: Beat | None = None) -> None:
        """Something was heard from the worker; a sign of life says whether it gets on."""
        self._silent_since_s = time.monotonic()
        if self._silence_s != self._limits.timeout_s:
            self._silence_s = self._limits.timeout_s
            self._deadline_changed.set()
        if beat is not None and (reason := self._limits.stall.stalled(beat)):
            self._end_stalled(reason)

    def _end_stalled(self, reason: str) -> None:
        """Has a worker that hangs leave word of where, and ends it if it does not."""
        if self.killed_because:
            return
        self.killed_because = f"{reason}; the stacks of its threads are in its log"
        if self._link is not None:
            self._link.send(EndStalled(reason))
        self._must_end(self._limits.exit_grace_s, self.killed_because)

    def connect(self) -> Link:
        """A new stream of the worker; an older one, whose end was not noticed yet, is closed."""
        if self._link is not None:
            self._link.close()
        self._link = Link()
        self.seen()
        # What was said to a stream that broke may not have arrived; a worker obeys each but once.
        for command in (self._preempt, self._cancel):
            if command is not None:
                self._link.send(command)
        return self._link

    def disconnect(self, link: Link) -> None:
        """A stream has ended."""
        link.close()
        if self._link is link:
            self._link = None

    def cancel(self, reason: str) -> None:
        """Tells the worker to stop, and ends it if it does not."""
        if self._cancel is not None:
            return
        self._cancel = Cancel(reason)
        if self._link is not None:
            self._link.send(self._cancel)
        elif not (self._adopted and self.worker.begun):
            # It has not begun to train: there is nothing that it would have to put in order.
            self.kill("cancelled before it began")
        self._must_end(self._limits.cancel_grace_s, "it did not stop when cancelled")

    def preempt(self, reason: str) -> None:
        """Tells the worker to write a checkpoint and end; by signal where it has no stream."""
        self.preempted = True
        if self._link is not None:
            self._preempt = Preempt(reason)
            self._link.send(self._preempt)
        else:
            self.worker.terminate()

    def pause(self, reason: str) -> None:
        """Has the worker write a checkpoint and end, and ends it if it does not: it has an earlier one."""
        if not self.preempted:
            # Told twice, it would not wait for the end of its step.
            self.preempt(reason or "It is to pause")
        self._must_end(self._limits.pause_grace_s, "it did not stop in time when paused")

    def finished(self) -> None:
        """The worker's last report is stored."""
        self._must_end(self._limits.exit_grace_s, "it did not end after its last report")

    def kill(self, because: str) -> None:
        """Ends the worker at once."""
        self.killed_because = self.killed_because or because
        self.worker.kill()

    async def until_gone(self) -> int | None:
        """Waits for the worker's end, brings it about when a limit is passed, and hears its last words.

        Returns:
            Its exit code, None where nobody knows it.
        """
        gone = asyncio.ensure_future(self.worker.wait())
        beginning = asyncio.ensure_future(self._see_it_begin())
        try:
            return await self._until_gone(gone)
        finally:
            gone.cancel()
            beginning.cancel()

    async def _see_it_begin(self) -> None:
        """From its beginning on a sign of life is expected: what waits for a place gives none."""
        if not self.worker.begun:
            await self.worker.until_begun()
            self._silent_since_s = time.monotonic()
            self._deadline_changed.set()

    async def _until_gone(self, gone: asyncio.Future[int | None]) -> int | None:
        while not gone.done():
            self._deadline_changed.clear()
            deadline_s, because = self._deadline()
            if time.monotonic() >= deadline_s:
                self.kill(because)
                await gone
                break
            changed = asyncio.ensure_future(self._deadline_changed.wait())
            either: set[asyncio.Future[Any]] = {gone, changed}
            await asyncio.wait(
                either,
                timeout=None if math.isinf(deadline_s) else deadline_s - time.monotonic(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            changed.cancel()
        if self._link is not None:
            await self._link.until_closed(_LAST_WORDS_S)
        return gone.result()

    def leave(self) -> None:
        """Closes its stream: nothing that it says is of interest any longer."""
        if self._link is not None:
            self._link.close()

    def _must_end(self, within_s: float, because: str) -> None:
        deadline_s = time.monotonic() + within_s
        if deadline_s < self._must_end_s:
            self._must_end_s, self._must_end_because = deadline_s, because
            self._deadline_changed.set()

    def _deadline(self) -> tuple[float, str]:
        silent = (
            self._silent_since_s + self._silence_s,
            f"nothing was heard from it for {self._silence_s:g} s",
        )
        return min(silent, (self._must_end_s, self._must_end_because))
