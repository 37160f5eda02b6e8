"""Blobs in memory, for tests and trials: gone with the process."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from services.registry.blobs.base import (
    CHUNK_BYTES,
    BlobStatus,
    BlobStore,
    BlobUpload,
    StoredBlob,
    check_digest,
    not_found,
    range_end,
    storage_full,
)
from services.registry.blobs.shared import Sink, Uploads

if TYPE_CHECKING:
    from hashlib import _Hash


class MemoryBlobStore(BlobStore):
    """Blobs in dictionaries.

    Args:
        capacity_bytes: what blobs and partial uploads may take together; None for no limit.
    """

    def __init__(self, capacity_bytes: int | None = None) -> None:
        self._capacity_bytes = capacity_bytes
        self._whole: dict[str, bytes] = {}
        self._parts: dict[str, bytearray] = {}
        self._touched_s: dict[str, float] = {}
        self._uploads = Uploads(self._sink)

    def _sink(self, digest: str) -> Sink:
        return _MemorySink(digest, self._whole, self._parts, self._touched_s)

    async def begin_upload(self, digest: str, size_bytes: int) -> BlobUpload | None:
        status = await self.status(digest)
        if status.complete:
            return None
        rest_bytes = size_bytes - status.committed_size_bytes
        if self._capacity_bytes is not None and rest_bytes > self._free_bytes():
            raise storage_full(digest, rest_bytes, self._free_bytes())
        return await self._uploads.join(digest, size_bytes)

    def _free_bytes(self) -> int:
        used = sum(map(len, self._whole.values())) + sum(map(len, self._parts.values()))
        return (self._capacity_bytes or 0) - used

    async def status(self, digest: str) -> BlobStatus:
        check_digest(digest)
        if digest in self._whole:
            return BlobStatus(len(self._whole[digest]), complete=True)
        return BlobStatus(len(self._parts.get(digest, b"")), complete=False)

    async def missing(self, digests: Sequence[str]) -> list[str]:
        return [digest for digest in digests if check_digest(digest) and digest not in self._whole]

    async def size(self, digest: str) -> int:
        check_digest(digest)
        if digest not in self._whole:
            raise not_found(digest)
        return len(self._whole[digest])

    async def read(self, digest: str, offset: int = 0, limit: int = 0) -> AsyncIterator[bytes]:
        end = range_end(digest, await self.size(digest), offset, limit)
        data = self._whole[digest]
        for begin in range(offset, end, CHUNK_BYTES):
            yield data[begin : min(begin + CHUNK_BYTES, end)]

    async def total_bytes(self) -> int:
        return sum(map(len, self._whole.values()))

    async def delete(self, digest: str) -> None:
        check_digest(digest)
        self._whole.pop(digest, None)

    async def stored(self, after: str = "", limit: int = 1000) -> list[StoredBlob]:
        now_s = time.monotonic()
        page = sorted(digest for digest in self._whole if digest > after)[:limit]
        return [
            StoredBlob(digest, len(self._whole[digest]), now_s - self._touched_s[digest])
            for digest in page
        ]

    async def expire_uploads(self, older_than_s: float) -> int:
        oldest_s = time.monotonic() - older_than_s
        stale = [
            digest
            for digest in self._parts
            if self._touched_s[digest] <= oldest_s and not self._uploads.is_open(digest)
        ]
        for digest in stale:
            del self._parts[digest]
        return len(stale)


class _MemorySink(Sink):
    def __init__(
        self,
        digest: str,
        whole: dict[str, bytes],
        parts: dict[str, bytearray],
        touched_s: dict[str, float],
    ) -> None:
        self._digest, self._whole, self._parts, self._touched_s = digest, whole, parts, touched_s

    def published(self) -> bool:
        return self._digest in self._whole

    def replay(self, hasher: _Hash) -> int:
        kept = self._parts.setdefault(self._digest, bytearray())
        self._touched_s[self._digest] = time.monotonic()
        hasher.update(kept)
        return len(kept)

    def append(self, data: bytes, at: int) -> None:
        self._parts[self._digest][at:] = data
        self._touched_s[self._digest] = time.monotonic()

    def publish(self, size_bytes: int) -> None:
        self._whole[self._digest] = bytes(self._parts.pop(self._digest))

    def discard(self) -> None:
        self._parts[self._digest] = bytearray()

    def close(self) -> int:
        return len(self._parts.get(self._digest, b""))
