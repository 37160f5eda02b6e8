"""Part files of uploads: a file has one writer at a time, also among processes that share the folder.

A writer holds its file by flock, which ends with its process. Who finds every part of a digest held
begins one of its own. Names are {hex}.part and {hex}.{random}.part.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from services.registry.blobs.disk import Disk


class PartFiles:
    """The part files in a folder.

    Args:
        folder: holds nothing else.
        disk: the file operations that can run out of space.
    """

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder, self._disk = folder, disk

    def kept_bytes(self, digits: str) -> int:
        """Size of the largest part of a digest, by its hexadecimal digits."""
        return max((size for size, _ in self._parts_of(digits)), default=0)

    def take(self, digits: str) -> tuple[Path, int]:
        """The largest part that nobody writes, or a new one: its path, and its handle with the lock.

        Raises:
            OSError: ENOSPC or EDQUOT when there is no room for it.
        """
        free = [path for _, path in sorted(self._parts_of(digits), reverse=True)]
        for path in (*free, self._folder / f"{digits}.part"):
            handle = self._hold(path)
            if handle is not None:
                return path, handle
        while True:
            path = self._folder / f"{digits}.{uuid.uuid4().hex}.part"
            handle = self._hold(path)
            if handle is not None:
                return path, handle

    def drop(self, digits: str) -> None:
        """Removes the parts of a digest that nobody writes."""
        for _, path in list(self._parts_of(digits)):
            self._drop(path)

    def expire(self, older_than_s: float) -> int:
        """Removes the parts that nobody has written to for so long; returns how many."""
        oldest_s = time.time() - older_than_s
        return sum(
            info.st_mtime <= oldest_s and self._drop(path) for path, info in self._files("*.part")
        )

    def _drop(self, path: Path) -> bool:
        handle = self._hold(path)
        if handle is None:
            return False
        path.unlink(missing_ok=True)
        os.close(handle)
        return True

    def _parts_of(self, digits: str) -> Iterator[tuple[int, Path]]:
        for path, info in self._files(f"{digits}*.part"):
            yield info.st_size, path

    def _files(self, pattern: str) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self._folder.glob(pattern):
            info = regular_file(path)
            if info is not None:
                yield path, info

    def _hold(self, path: Path) -> int | None:
        """A handle with the lock; None when another holds it, or the name is not this file's."""
        try:
            handle = self._disk.open(path)
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        # Between open and lock its writer may have published or removed it.
        named = regular_file(path)
        if named is None or named.st_ino != os.fstat(handle).st_ino:
            os.close(handle)
            return None
        return handle


def regular_file(path: Path) -> os.stat_result | None:
    """What is known of a regular file; None when there is none, or a link in its place."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return None
    return info if stat.S_ISREG(info.st_mode) else None
