"""What was read of files and is read again when they have changed; for certificates, at either end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from graft.errors import GraftError

_log = logging.getLogger("graft.tls")
Content = TypeVar("Content")
Stamp = tuple[tuple[int, int, int], ...]


class Renewed(Generic[Content]):
    """What was read of files, read again once they have changed.

    What cannot be used (half written, wrong key) is told, and what was read before stays.

    Args:
        files: whose change means anew.
        read: reads and checks them.
        tell: is given what is wrong with a renewal, and None for a good one.

    Raises:
        GraftError: of the first read.
    """

    def __init__(
        self,
        files: tuple[Path, ...],
        read: Callable[[], Content],
        tell: Callable[[GraftError | None], None] | None = None,
    ) -> None:
        self._files, self._read, self._tell = files, read, tell or _warn
        # A handshake and a scrape come in threads of their own.
        self._lock = threading.Lock()
        self._stamp = _stamp(files)
        self._content, self._generation = read(), 0

    def now(self) -> tuple[Content, int]:
        """What is in the files, and how often it was renewed."""
        with self._lock:
            stamp = _stamp(self._files)
            if stamp != self._stamp:
                self._stamp = stamp
                self._renew()
            return self._content, self._generation

    def _renew(self) -> None:
        try:
            self._content = self._read()
        except GraftError as error:
            self._tell(error)
            return
        self._generation += 1
        self._tell(None)


def _warn(error: GraftError | None) -> None:
    if error is not None:
        _log.warning("certificates have changed and cannot be used: %s; the old stay", error)


def _stamp(files: tuple[Path, ...]) -> Stamp:
    """Changes also where a mounted Secret's folder is exchanged as a whole."""
    found = []
    for path in files:
        try:
            status = path.stat()
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        except OSError:
            found.append((0, 0, 0))
    return tuple(found)
