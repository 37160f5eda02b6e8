"""A full disk: told from other errors, and said with its path, what is free and what is needed."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from graft.errors import GraftError, Reason

# With the system's words, which libraries repeat in errors of their own.
_FULL = {
    errno.ENOSPC: "No space left on device",
    errno.EDQUOT: "Disk quota exceeded",
    errno.EFBIG: "File too large",
}
_WRITE_WORDS = ("PytorchStreamWriter", "unexpected pos", "file write failed")
_LITTLE_BYTES = 2**20


def is_disk_full(error: BaseException, folder: Path, needed_bytes: int = 0) -> bool:
    """Whether an error comes from a full disk, a quota, or a limit of a file's size.

    Args:
        error: torch and safetensors wrap the system's error in their own.
        folder: that was written to.
        needed_bytes: how much was to be written.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    words = str(error)
    if any(part in words for part in _FULL.values()):
        return True
    wrote = any(part in words for part in _WRITE_WORDS)
    return wrote and free_bytes(folder) < max(_LITTLE_BYTES, needed_bytes)


def free_bytes(folder: Path) -> int:
    """What can still be written to the folder's disk; 0 when it is gone."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def storage_full(
    error: BaseException, folder: Path, what: str, needed_bytes: int, kept: str
) -> GraftError:
    """The error of a disk that is full.

    Args:
        error: by which that was found out.
        folder: that was written to.
        what: was to be written.
        needed_bytes: of it; 0 where that is not known.
        kept: says what is still there.
    """
    free = free_bytes(folder)
    needed = f"{needed_bytes:,} bytes are needed" if needed_bytes else "more is needed"
    said = next((one for one in _FULL.values() if one in str(error)), _FULL[errno.ENOSPC])
    return GraftError(
        Reason.STORAGE_FULL,
        f"The {what} cannot be written to {folder} ({said}): {free:,} bytes are free there and {needed}; {kept}",
        next_step="Make room there, or raise the limit, and resume the job: it goes on from its last checkpoint.",
        path=str(folder),
        free_bytes=str(free),
        needed_bytes=str(needed_bytes),
    )
