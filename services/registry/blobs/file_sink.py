"""An upload's bytes on their way into a file: the part it holds, and the rename that publishes it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from graft.digests import CHUNK_BYTES
from graft.errors import GraftError, Reason

from services.registry.blobs.base import storage_full
from services.registry.blobs.disk import Disk
from services.registry.blobs.parts import PartFiles, regular_file
from services.registry.blobs.shared import Sink

if TYPE_CHECKING:
    from hashlib import _Hash

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class FileSink(Sink):
    """Keeps an upload in a part file, which becomes the blob.

    Args:
        digits: the digest's hexadecimal digits.
        root: folder of the store.
        parts: its part files.
        disk: the file operations that can run out of space.
    """

    def __init__(self, digits: str, root: Path, parts: PartFiles, disk: Disk) -> None:
        self._digits, self._root, self._parts, self._disk = digits, root, parts, disk
        self._held: tuple[Path, int] | None = None
        self._kept_bytes = 0

    @property
    def _handle(self) -> int:
        assert self._held is not None, "replay() comes first"
        return self._held[1]

    @contextmanager
    def _refusing_a_full_disk(self, needed_bytes: int) -> Iterator[None]:
        """A disk may be found full at any of open, write, fsync and rename."""
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            free_bytes = self._disk.free_bytes(self._root)
            raise storage_full("sha256:" + self._digits, needed_bytes, free_bytes) from error

    def published(self) -> bool:
        path = self._root / "sha256" / self._digits[:2] / self._digits[2:]
        return regular_file(path) is not None

    def replay(self, hasher: _Hash) -> int:
        self._kept_bytes = 0
        if self._held is None:
            with self._refusing_a_full_disk(0):
                self._held = self._parts.take(self._digits)
        while chunk := os.pread(self._handle, CHUNK_BYTES, self._kept_bytes):
            hasher.update(chunk)
            self._kept_bytes += len(chunk)
        return self._kept_bytes

    def append(self, data: bytes, at: int) -> None:
        with self._refusing_a_full_disk(len(data)):
            try:
                self._disk.append(self._handle, data, at)
            except OSError:
                os.ftruncate(self._handle, at)
                raise
        self._kept_bytes = at + len(data)

    def publish(self, size_bytes: int) -> None:
        with self._refusing_a_full_disk(0):
            self._disk.sync(self._handle)
            if not self.published():
                self._rename()
        self._release()
        self._parts.drop(self._digits)

    def _rename(self) -> None:
        assert self._held is not None
        part, name = self._held[0], self._digits[:2]
        with open_folder(self._root / "sha256") as blobs, open_folder(part.parent) as parts:
            try:
                os.mkdir(name, dir_fd=blobs)
                os.fsync(blobs)
            except FileExistsError:
                pass
            with open_folder(Path(name), blobs) as target:
                os.rename(part.name, self._digits[2:], src_dir_fd=parts, dst_dir_fd=target)
                os.fsync(target)

    def discard(self) -> None:
        os.ftruncate(self._handle, 0)
        self._kept_bytes = 0

    def close(self) -> int:
        if self._held is not None and self._kept_bytes == 0:
            self._held[0].unlink(missing_ok=True)
        self._release()
        return self._kept_bytes

    def _release(self) -> None:
        if self._held is not None:
            os.close(self._handle)
            self._held = None


@contextmanager
def open_folder(path: Path, below: int | None = None) -> Iterator[int]:
    """A handle of a folder that is not a symbolic link; below is its parent's handle."""
    try:
        handle = os.open(path, _FLAGS, dir_fd=below)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        raise GraftError(
            Reason.UNAVAILABLE,
            f"{path} in the registry's store is not a folder, or is a symbolic link to one",
            next_step="Remove it: the store makes its folders itself.",
        ) from None
    try:
        yield handle
    finally:
        os.close(handle)
