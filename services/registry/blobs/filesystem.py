"""Blobs as files: sha256/ab/cdef... once whole, uploads/{hex}.part while they come.

Several processes may share the folder. Files appear only by an atomic rename, and no symbolic link
in the folder is followed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from services.registry.blobs.base import (
    CHUNK_BYTES,
    BlobStatus,
    BlobStore,
    BlobUpload,
    StoredBlob,
    check_digest,
    damaged,
    not_found,
    range_end,
    storage_full,
)
from services.registry.blobs.disk import Disk
from services.registry.blobs.file_sink import FileSink, open_folder
from services.registry.blobs.parts import PartFiles, regular_file
from services.registry.blobs.shared import Sink, Uploads


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
        self._parts = PartFiles(root / "uploads", self._disk)
        self._uploads = Uploads(self._sink)

    def _path(self, digest: str) -> Path:
        digits = check_digest(digest)
        return self._root / "sha256" / digits[:2] / digits[2:]

    def _sink(self, digest: str) -> Sink:
        return FileSink(check_digest(digest), self._root, self._parts, self._disk)

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
        kept_bytes = self._parts.kept_bytes(check_digest(digest))
        whole = regular_file(self._path(digest))
        if whole is not None:
            return BlobStatus(whole.st_size, complete=True)
        return BlobStatus(kept_bytes, complete=False)

    async def missing(self, digests: Sequence[str]) -> list[str]:
        def look() -> list[str]:
            return [digest for digest in digests if regular_file(self._path(digest)) is None]

        return await asyncio.to_thread(look)

    async def size(self, digest: str) -> int:
        found = await asyncio.to_thread(regular_file, self._path(digest))
        if found is None:
            raise not_found(digest)
        return found.st_size

    async def read(self, digest: str, offset: int = 0, limit: int = 0) -> AsyncIterator[bytes]:
        # One turn of a thread opens the file and reads the first chunk: small blobs are many.
        reader = _Reader(digest, self._path(digest), offset, limit)
        try:
            while chunk := await asyncio.to_thread(reader.next):
                yield chunk
                if reader.done:
                    break
        finally:
            reader.close()

    async def total_bytes(self) -> int:
        def total() -> int:
            return sum(path.lstat().st_size for path in (self._root / "sha256").glob("??/*"))

        return await asyncio.to_thread(total)

    async def delete(self, digest: str) -> None:
        def remove() -> None:
            with open_folder(path.parent) as handle:
                os.unlink(path.name, dir_fd=handle)
                os.fsync(handle)

        path = self._path(digest)
        if await asyncio.to_thread(regular_file, path) is None:
            return
        try:
            await asyncio.to_thread(remove)
        except FileNotFoundError:
            return  # Another process was faster.

    async def stored(self, after: str = "", limit: int = 1000) -> list[StoredBlob]:
        return await asyncio.to_thread(self._stored_now, after, limit)

    def _stored_now(self, after: str, limit: int) -> list[StoredBlob]:
        digits = check_digest(after) if after else ""
        page: list[StoredBlob] = []
        for folder in sorted((self._root / "sha256").glob("??")):
            if folder.name < digits[:2]:
                continue
            for path in sorted(folder.iterdir()):
                info = regular_file(path)
                if folder.name + path.name > digits and info is not None:
                    age_s = max(0.0, time.time() - info.st_mtime)
                    digest = f"sha256:{folder.name}{path.name}"
                    page.append(StoredBlob(digest, info.st_size, age_s))
                if len(page) == limit:
                    return page
        return page

    async def expire_uploads(self, older_than_s: float) -> int:
        return await asyncio.to_thread(self._parts.expire, older_than_s)


class _Reader:
    """One read of a blob, chunk by chunk in a thread; one of the whole checks its digest."""

    def __init__(self, digest: str, path: Path, offset: int, limit: int) -> None:
        self._digest, self._path, self._at, self._limit = digest, path, offset, limit
        self._handle: int | None = None
        self._end = -1
        self._hasher: hashlib._Hash | None = None

    @property
    def done(self) -> bool:
        """Whether all was read, and its digest right where it is of the whole."""
        return self._at == self._end

    def _open(self) -> int:
        if self._handle is not None:
            return self._handle
        try:
            self._handle = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise not_found(self._digest) from None
        size_bytes = os.fstat(self._handle).st_size
        self._end = range_end(self._digest, size_bytes, self._at, self._limit)
        if (self._at, self._end) == (0, size_bytes):
            self._hasher = hashlib.sha256()
        return self._handle

    def next(self) -> bytes:
        """The next chunk; b"" at the end. The last one is given only if the digest is right."""
        handle = self._open()
        chunk = os.pread(handle, min(CHUNK_BYTES, self._end - self._at), self._at)
        if not chunk and not self.done:
            raise damaged(self._digest, f"end at {self._at} instead of {self._end}")
        self._at += len(chunk)
        if self._hasher:
            self._hasher.update(chunk)
            found = "sha256:" + self._hasher.hexdigest() if self.done else self._digest
            if found != self._digest:
                raise damaged(self._digest, f"have the digest {found}")
        return chunk

    def close(self) -> None:
        """Closes the file."""
        if self._handle is not None:
            os.close(self._handle)
