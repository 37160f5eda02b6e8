"""Blobs as the registry knows them: bytes in a store, and a row in the catalogue that says they exist.

Whoever makes a blob exist, and whoever removes its bytes, holds the blob's lock and looks again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from graft.errors import GraftError, Reason

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
        """See BlobStore.begin_upload. What is being collected is rescued, or begins anew."""
        check_digest(digest)
        upload = await self._store.begin_upload(digest, size_bytes)
        # Also what was stored before a crash kept its row from being written.
        if upload is None and not await self._keep(digest):
            upload = await self._store.begin_upload(digest, size_bytes)
            if upload is None:
                await self._must_keep(digest)
        return None if upload is None else _TrackedUpload(upload, digest, self)

    async def status(self, digest: str) -> BlobStatus:
        """See BlobStore.status; bytes without a row are kept, and not complete."""
        found = await self._store.status(digest)
        if found.complete and not await self._index.touch([digest]):
            return BlobStatus(found.committed_size_bytes, complete=False)
        return found

    async def missing(self, digests: Sequence[str]) -> list[str]:
        """See BlobStore.missing; those that are there stay for the grace time."""
        for digest in digests:
            check_digest(digest)
        present = await self._index.touch(digests)
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
        if signed is None and not await self._keep(digest):
            signed = await self._store.sign_upload(digest, size_bytes)
            if signed is None:
                await self._must_keep(digest)
        return signed

    async def finish_signed_upload(self, digest: str, size_bytes: int, upload_id: str) -> None:
        """See BlobStore.finish_signed_upload."""
        await self._store.finish_signed_upload(digest, size_bytes, upload_id)
        await self._must_keep(digest)

    async def sign_download(self, digest: str) -> SignedUrl:
        """See BlobStore.sign_download."""
        return await self._store.sign_download(digest)

    async def remove(self, digest: str) -> bool:
        """Removes the bytes and the row of a blob that is marked for it; says whether it did."""
        async with self._index.hold(digest):
            if not await self._index.is_deleting(digest):
                # An upload came, and rescued it.
                return False
            await self._store.delete(digest)
            return await self._index.forget(digest)

    async def remove_orphan(self, digest: str) -> bool:
        """Removes bytes that have no row; says whether it did."""
        async with self._index.hold(digest):
            if await self._index.present([digest]) or await self._index.is_deleting(digest):
                return False
            await self._store.delete(digest)
            return True

    async def _keep(self, digest: str) -> bool:
        """Makes the blob exist, where all its bytes are stored; says whether they are."""
        async with self._index.hold(digest):
            found = await self._store.status(digest)
            if found.complete:
                await self._index.register(digest, found.committed_size_bytes)
            else:
                await self._index.forget(digest)
            return found.complete

    async def _must_keep(self, digest: str) -> None:
        if not await self._keep(digest):
            raise GraftError(
                Reason.UNAVAILABLE,
                f"{digest} was collected while it was being stored again",
                next_step="Upload it again, with a lease on it.",
                digest=digest,
            )


class _TrackedUpload(BlobUpload):
    def __init__(self, upload: BlobUpload, digest: str, objects: Objects) -> None:
        self._upload, self._digest, self._objects = upload, digest, objects
        self._finished = False

    async def append(self, write_offset: int, data: bytes) -> None:
        await self._upload.append(write_offset, data)

    async def finish(self) -> None:
        await self._upload.finish()
        self._finished = True

    async def close(self) -> BlobStatus:
        status = await self._upload.close()
        if self._finished:
            await self._objects._must_keep(self._digest)
        return status
