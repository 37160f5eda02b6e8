"""The file operations that can run out of space, apart so that a test can make them do so."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


class Disk:
    """The real file system."""

    def free_bytes(self, folder: Path) -> int:
        """Bytes that can still be written below folder."""
        return shutil.disk_usage(folder).free

    def open(self, path: Path) -> int:
        """Opens a file for reading and writing, and makes it where it does not exist.

        Raises:
            OSError: ENOSPC or EDQUOT when there is no room for it; ELOOP for a symbolic link.
        """
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)

    def append(self, handle: int, data: bytes, at: int) -> None:
        """Writes all of data at position `at`.

        Raises:
            OSError: ENOSPC or EDQUOT when it does not fit.
        """
        view = memoryview(data)
        while view:
            written = os.pwrite(handle, view, at)
            view, at = view[written:], at + written

    def sync(self, handle: int) -> None:
        """Returns when the file's bytes are on the medium.

        Raises:
            OSError: ENOSPC or EDQUOT, on file systems that allocate late.
        """
        os.fsync(handle)
