"""Stopping a worker from outside: preemption at the next step's end, cancellation at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from services.trainer.run.exits import PreemptedError


class StopSignal:
    """What the worker's stages ask whether they may go on.

    A cancelled worker dies at once, because all it keeps on disk is written atomically; only a commit
    that is on its way is waited for, so that a job never says cancelled when its version exists.
    """

    def __init__(self) -> None:
        self._preempted = threading.Event()
        self._committing = threading.Lock()
        self._committed = False
        self._stepwise = False

    @property
    def preempted(self) -> bool:
        """Whether the attempt shall write a checkpoint and stop."""
        return self._preempted.is_set()

    def listen(self) -> None:
        """Takes SIGTERM as preemption from now on; must be called on the main thread."""
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, _number: int, _frame: FrameType | None) -> None:
        again = self._preempted.is_set()
        self._preempted.set()
        if again or not self._stepwise:
            raise PreemptedError("Stopped by SIGTERM")

    @contextmanager
    def checked_by_stage(self) -> Iterator[None]:
        """While inside, a preemption only sets a flag: the stage looks at it where it can stop well."""
        self._stepwise = True
        try:
            self.check()
            yield
        finally:
            self._stepwise = False

    def check(self) -> None:
        """Raises PreemptedError when the attempt shall stop."""
        if self._preempted.is_set():
            raise PreemptedError("Stopped as told")

    @contextmanager
    def committing(self) -> Iterator[None]:
        """While inside, a cancellation waits; after it, none is obeyed: the version exists."""
        with self._committing:
            yield
            self._committed = True

    def forbid_commit(self) -> bool:
        """Waits for a commit that is on its way; whether there is none and none can begin any more."""
        self._committing.acquire()
        if self._committed:
            self._committing.release()
        return not self._committed
