"""Locks that several processes of one machine see, and that end with whoever holds them: flock on small files.

A lock file may be removed by the one that holds it alone; who waits for it then notices and takes the
new one.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from contextlib import suppress
from pathlib import Path

_POLL_S = 0.02


class FileLock:
    """A lock that is held; release() ends it, as does the end of the process, even by SIGKILL."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def touch(self) -> None:
        """Notes that what it guards was used now, for who looks for the least recently used."""
        # The file may be another user's.
        with suppress(OSError):
            os.utime(self._path)

    def remove(self) -> None:
        """Removes its file; only for who holds it alone."""
        self._path.unlink(missing_ok=True)

    def release(self) -> None:
        """Ends it; may be called again."""
        if self._descriptor < 0:
            return
        # A forked child has the same descriptor: closing ours alone would leave the lock held.
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)
        self._descriptor = -1


def try_lock(path: Path, *, alone: bool) -> FileLock | None:
    """Locks path, alone or with others who do not want it alone; None while that cannot be.

    Raises:
        OSError: the file cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                return FileLock(path, descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        # It was removed between the opening and the locking.
        os.close(descriptor)


async def lock(path: Path, *, alone: bool) -> FileLock:
    """As try_lock(), waiting for as long as it takes; may be cancelled."""
    while True:
        held = try_lock(path, alone=alone)
        if held is not None:
            return held
        await asyncio.sleep(_POLL_S)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
