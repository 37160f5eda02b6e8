"""Blobs as the registry knows them: bytes in a store, and a row in the catalogue that says they exist."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from services.registry.blobs.base import (
    BlobStatus,
    BlobStore,
    BlobUpload,
    SignedUpload,
    SignedUrl,
    check_digest,
)
from services.registry.catalogue.blob_index import BlobIndex


class Objects:
    """What uploads, reads and commits see of the blobs.

    Args:
        store: where the bytes are.
        index: which of them exist.
    """

    def __init__(self, store: BlobStore, index: BlobIndex) -> None:
        self._store, self._index = store, index

    async def begin_upload(self, digest: str, size_bytes: int) -> BlobUpload | None:
        """See BlobStore.begin_upload."""
        check_digest(digest)
        upload = await self._store.begin_upload(digest, size_bytes)
        if upload is None:
            # Also what was stored before a crash kept its row from being written.
            await self._index.register(digest, await self._store.size(digest))
            return None
        return _TrackedUpload(upload, digest, self._index)

    async def status(self, digest: str) -> BlobStatus:
        """See BlobStore.status; bytes without a row are kept, and not complete."""
        found = await self._store.status(digest)
        if found.complete and not await self._index.present([digest]):
            return BlobStatus(found.committed_size_bytes, complete=False)
        return found

    async def missing(self, digests: Sequence[str]) -> list[str]:
        """See BlobStore.missing."""
        for digest in digests:
            check_digest(digest)
        present = await self._index.present(digests)
        return [digest for digest in digests if digest not in present]

    async def size(self, digest: str) -> int:
        """See BlobStore.size."""
        return await self._store.size(digest)

    def read(self, digest: str, offset: int = 0, limit: int = 0) -> AsyncIterator[bytes]:
        """See BlobStore.read."""
        return self._store.read(digest, offset, limit)

    async def sign_upload(self, digest: str, size_bytes: int) -> SignedUpload | None:
        """See BlobStore.sign_upload."""
        signed = await self._store.sign_upload(digest, size_bytes)
        if signed is None:
            await self._index.register(digest, await self._store.size(digest))
        return signed

    async def finish_signed_upload(self, digest: str, size_bytes: int, upload_id: str) -> None:
        """See BlobStore.finish_signed_upload."""
        await self._store.finish_signed_upload(digest, size_bytes, upload_id)
        await self._index.register(digest, size_bytes)

    async def sign_download(self, digest: str) -> SignedUrl:
        """See BlobStore.sign_download."""
        return await self._store.sign_download(digest)


class _TrackedUpload(BlobUpload):
    def __init__(self, upload: BlobUpload, digest: str, index: BlobIndex) -> None:
        self._upload, self._digest, self._index = upload, digest, index
        self._finished = False

    async def append(self, write_offset: int, data: bytes) -> None:
        await self._upload.append(write_offset, data)

    async def finish(self) -> None:
        await self._upload.finish()
        self._finished = True

    async def close(self) -> BlobStatus:
        status = await self._upload.close()
        if self._finished:
            await self._index.register(self._digest, status.committed_size_bytes)
        return status
