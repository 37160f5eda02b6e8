"""Blobs in memory, for tests and trials: gone with the process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

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
        self._uploads = Uploads(lambda digest: _MemorySink(digest, self._whole, self._parts))

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


class _MemorySink(Sink):
    def __init__(self, digest: str, whole: dict[str, bytes], parts: dict[str, bytearray]) -> None:
        self._digest, self._whole, self._parts = digest, whole, parts

    def published(self) -> bool:
        return self._digest in self._whole

    def replay(self, hasher: _Hash) -> int:
        kept = self._parts.setdefault(self._digest, bytearray())
        hasher.update(kept)
        return len(kept)

    def append(self, data: bytes, at: int) -> None:
        self._parts[self._digest][at:] = data

    def publish(self) -> None:
        self._whole[self._digest] = bytes(self._parts.pop(self._digest))

    def discard(self) -> None:
        self._parts[self._digest] = bytearray()

    def close(self) -> None:
        pass
