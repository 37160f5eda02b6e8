"""One `graft up` per home: a lock that ends with its process, and the finding of who holds it."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graft.errors import GraftError, Reason


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Holds a home for one `graft up`; the lock ends with the process, however it ends.

    Raises:
        GraftError: ALREADY_EXISTS when another one holds it.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GraftError(
                Reason.ALREADY_EXISTS,
                f"`graft up` runs already in {home} (process {_holder(home)})",
                next_step="Stop it with `graft down`, or choose another folder with --home.",
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def running(home: Path) -> int | None:
    """Process id of the `graft up` that holds a home; None when there is none."""
    try:
        with (home / "up.lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return int(_holder(home) or 0) or None
    return None


def ask_to_stop(pid: int) -> None:
    """Tells a `graft up` to drain its services and end."""
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return


def _holder(home: Path) -> str:
    return (home / "up.lock").read_text("utf-8").strip()
