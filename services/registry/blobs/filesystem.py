"""Blobs as files: blobs/sha256/ab/cdef... once whole, uploads/{hex}.part while they come.

One process per folder writes (server.py takes a lock); files appear only by an atomic rename.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from graft.errors import GraftError, Reason
from graft.files import fsync_folder

from services.registry.blobs.base import (
    CHUNK_BYTES,
    BlobStatus,
    BlobStore,
    BlobUpload,
    check_digest,
    not_found,
    range_end,
    storage_full,
)
from services.registry.blobs.disk import Disk
from services.registry.blobs.shared import Sink, Uploads

if TYPE_CHECKING:
    from hashlib import _Hash

_FULL = (errno.ENOSPC, errno.EDQUOT)


class FilesystemBlobStore(BlobStore):
    """Blobs below a folder of this machine.

    Args:
        root: made where it does not exist.
        disk: the file operations that can run out of space.
    """

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self._root, self._disk = root, disk or Disk()
        (root / "sha256").mkdir(parents=True, exist_ok=True)
        (root / "uploads").mkdir(exist_ok=True)
        self._uploads = Uploads(self._sink)

    def _path(self, digest: str) -> Path:
        digits = check_digest(digest)
        return self._root / "sha256" / digits[:2] / digits[2:]

    def _part(self, digest: str) -> Path:
        return self._root / "uploads" / f"{check_digest(digest)}.part"

    def _sink(self, digest: str) -> Sink:
        return _FileSink(self._part(digest), self._path(digest), self._disk)

    async def begin_upload(self, digest: str, size_bytes: int) -> BlobUpload | None:
        status = await self.status(digest)
        if status.complete:
            return None
        rest_bytes = size_bytes - status.committed_size_bytes
        free_bytes = await asyncio.to_thread(self._disk.free_bytes, self._root)
        if rest_bytes > free_bytes:
            raise storage_full(digest, rest_bytes, free_bytes)
        return await self._uploads.join(digest, size_bytes)

    async def status(self, digest: str) -> BlobStatus:
        return await asyncio.to_thread(self._status_now, digest)

    def _status_now(self, digest: str) -> BlobStatus:
        # The part first: between the two looks it may become the blob, and never the other way.
        kept_bytes = _size_of(self._part(digest))
        whole_bytes = _size_of(self._path(digest))
        if whole_bytes is not None:
            return BlobStatus(whole_bytes, complete=True)
        return BlobStatus(kept_bytes or 0, complete=False)

    async def missing(self, digests: Sequence[str]) -> list[str]:
        def look() -> list[str]:
            return [digest for digest in digests if not self._path(digest).is_file()]

        return await asyncio.to_thread(look)

    async def size(self, digest: str) -> int:
        found = await asyncio.to_thread(_size_of, self._path(digest))
        if found is None:
            raise not_found(digest)
        return found

    async def read(self, digest: str, offset: int = 0, limit: int = 0) -> AsyncIterator[bytes]:
        end = range_end(digest, await self.size(digest), offset, limit)
        handle = await asyncio.to_thread(os.open, self._path(digest), os.O_RDONLY)
        try:
            while offset < end:
                chunk = await asyncio.to_thread(
                    os.pread, handle, min(CHUNK_BYTES, end - offset), offset
                )
                if not chunk:
                    raise _shrunk(digest, offset, end)
                offset += len(chunk)
                yield chunk
        finally:
            os.close(handle)

    async def total_bytes(self) -> int:
        def total() -> int:
            return sum(path.stat().st_size for path in (self._root / "sha256").glob("??/*"))

        return await asyncio.to_thread(total)


class _FileSink(Sink):
    def __init__(self, part: Path, target: Path, disk: Disk) -> None:
        self._part, self._target, self._disk = part, target, disk
        self._handle: int | None = None

    def _open(self) -> int:
        if self._handle is None:
            with self._refusing_a_full_disk(0):
                self._handle = self._disk.open(self._part)
        return self._handle

    @contextmanager
    def _refusing_a_full_disk(self, needed_bytes: int) -> Iterator[None]:
        """A disk may be found full at any of open, write, fsync and rename."""
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            free_bytes = self._disk.free_bytes(self._part.parent)
            raise storage_full("sha256:" + self._part.stem, needed_bytes, free_bytes) from error

    def published(self) -> bool:
        return self._target.is_file()

    def replay(self, hasher: _Hash) -> int:
        handle, at = self._open(), 0
        while chunk := os.pread(handle, CHUNK_BYTES, at):
            hasher.update(chunk)
            at += len(chunk)
        return at

    def append(self, data: bytes, at: int) -> None:
        handle = self._open()
        with self._refusing_a_full_disk(len(data)):
            try:
                self._disk.append(handle, data, at)
            except OSError:
                os.ftruncate(handle, at)
                raise

    def publish(self) -> None:
        handle = self._open()
        with self._refusing_a_full_disk(0):
            self._disk.sync(handle)
            if not self._target.parent.is_dir():
                self._target.parent.mkdir(exist_ok=True)
                fsync_folder(self._target.parent.parent)
            self._part.replace(self._target)
            fsync_folder(self._target.parent)

    def discard(self) -> None:
        self.close()
        self._part.unlink(missing_ok=True)

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _shrunk(digest: str, offset: int, end: int) -> GraftError:
    return GraftError(
        Reason.DIGEST_MISMATCH,
        f"The stored bytes of {digest} end at {offset} instead of {end}: the store is damaged",
        next_step="Upload the file again after removing the damaged blob, and check the disk.",
        digest=digest,
    )
