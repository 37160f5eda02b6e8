"""Blobs in a bucket of an S3-compatible store: sha256/ab/cdef... once whole, uploads/ while they come.

incoming/ takes what clients put to signed URLs, verifying/ is where such bytes are checked. Many
registries may share a bucket. A rule of the bucket should end multipart uploads that were left.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

import obstore
from graft.digests import is_digest

from services.registry.blobs.base import (
    CHUNK_BYTES,
    BlobStatus,
    BlobStore,
    BlobUpload,
    SignedUpload,
    SignedUrl,
    StoredBlob,
    check_digest,
    damaged,
    not_found,
    range_end,
)
from services.registry.blobs.s3_client import S3Options, store_errors
from services.registry.blobs.s3_signed import SignedUploads
from services.registry.blobs.s3_sink import S3Sink, blob_key, staged_chain
from services.registry.blobs.shared import Uploads

if TYPE_CHECKING:
    from obstore import ObjectMeta

T = TypeVar("T")
_THREADS = 16
_PARTIAL = ("uploads", "incoming", "verifying")


class S3BlobStore(BlobStore):
    """Blobs in a bucket.

    Args:
        options: where, and how long to try.
        chunk_bytes: bytes of an upload that are kept in memory and then staged.
    """

    def __init__(self, options: S3Options, chunk_bytes: int = 8 * CHUNK_BYTES) -> None:
        self._options = options
        self._store, self._streams = options.connect(), options.connect(streaming=True)
        # A store that stalls holds these threads, and nobody else's.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="s3")
        self._uploads = Uploads(
            lambda digest: S3Sink(digest, self._store, chunk_bytes), self._threads
        )
        self._signed = SignedUploads(options, self._store, self._streams)

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, function, *arguments)

    def _head(self, digest: str) -> ObjectMeta | None:
        with store_errors(digest):
            try:
                return obstore.head(self._store, blob_key(digest))
            except FileNotFoundError:
                return None

    async def begin_upload(self, digest: str, size_bytes: int) -> BlobUpload | None:
        if await self._in_thread(self._head, digest) is not None:
            return None
        return await self._uploads.join(digest, size_bytes)

    async def status(self, digest: str) -> BlobStatus:
        return await self._in_thread(self._status_now, digest)

    def _status_now(self, digest: str) -> BlobStatus:
        # The chunks first: between the two looks they may become the blob, and never the other way.
        with store_errors(digest):
            chain = staged_chain(self._store, digest)
        whole = self._head(digest)
        if whole is not None:
            return BlobStatus(whole["size"], complete=True)
        return BlobStatus(chain[-1].end if chain else 0, complete=False)

    async def missing(self, digests: Sequence[str]) -> list[str]:
        found = await asyncio.gather(*(self._in_thread(self._head, each) for each in digests))
        return [digest for digest, meta in zip(digests, found, strict=True) if meta is None]

    async def size(self, digest: str) -> int:
        found = await self._in_thread(self._head, digest)
        if found is None:
            raise not_found(digest)
        return found["size"]

    async def read(self, digest: str, offset: int = 0, limit: int = 0) -> AsyncIterator[bytes]:
        size_bytes = await self.size(digest)
        end = range_end(digest, size_bytes, offset, limit)
        hasher = hashlib.sha256() if (offset, end) == (0, size_bytes) else None
        async for chunk in self._stream(digest, offset, end):
            if hasher:
                await self._in_thread(hasher.update, chunk)
            for begin in range(0, len(chunk), CHUNK_BYTES):
                yield chunk[begin : begin + CHUNK_BYTES]
        found = hasher and "sha256:" + hasher.hexdigest()
        if found and found != digest:
            raise damaged(digest, f"have the digest {found}")

    async def _stream(self, digest: str, offset: int, end: int) -> AsyncIterator[bytes]:
        if offset == end:
            return
        with store_errors(digest, reading=True):
            answer = await obstore.get_async(
                self._streams, blob_key(digest), options={"range": (offset, end)}
            )
            async for chunk in answer.stream(min_chunk_size=CHUNK_BYTES):
                yield chunk

    async def total_bytes(self) -> int:
        def total() -> int:
            return sum(meta["size"] for meta in self._list("sha256/"))

        return await self._in_thread(total)

    def _list(self, prefix: str, after: str | None = None) -> Iterator[ObjectMeta]:
        with store_errors(f"the list of {prefix}"):
            for page in obstore.list(self._store, prefix, offset=after, chunk_size=1000):
                yield from page

    async def delete(self, digest: str) -> None:
        def remove() -> None:
            with store_errors(digest):
                obstore.delete(self._store, [blob_key(digest)])

        await self._in_thread(remove)

    async def stored(self, after: str = "", limit: int = 1000) -> list[StoredBlob]:
        return await self._in_thread(self._stored_now, after, limit)

    def _stored_now(self, after: str, limit: int) -> list[StoredBlob]:
        page: list[StoredBlob] = []
        for meta in self._list("sha256/", blob_key(after) if after else None):
            digest = "sha256:" + "".join(meta["path"].split("/")[1:])
            if is_digest(digest):
                page.append(StoredBlob(digest, meta["size"], _age_s(meta)))
            if len(page) == limit:
                break
        return page

    async def expire_uploads(self, older_than_s: float) -> int:
        return await self._in_thread(self._expire_now, older_than_s)

    def _expire_now(self, older_than_s: float) -> int:
        uploads: dict[str, list[ObjectMeta]] = {}
        for prefix in _PARTIAL:
            for meta in self._list(f"{prefix}/"):
                uploads.setdefault("/".join(meta["path"].split("/")[:2]), []).append(meta)
        expired = 0
        for key, objects in uploads.items():
            digest = "sha256:" + key.partition("/")[2]
            young = min(map(_age_s, objects)) < older_than_s
            if not young and not self._uploads.is_open(digest):
                with store_errors(digest):
                    obstore.delete(self._store, [meta["path"] for meta in objects])
                expired += 1
        return expired

    async def sign_upload(self, digest: str, size_bytes: int) -> SignedUpload | None:
        self._signed.check_size(size_bytes)
        if await self._in_thread(self._head, digest) is not None:
            return None
        return await self._in_thread(self._signed.sign, digest)

    async def finish_signed_upload(self, digest: str, size_bytes: int, upload_id: str) -> None:
        check_digest(digest)
        exists = await self._in_thread(self._head, digest) is not None
        await self._in_thread(self._signed.finish, digest, size_bytes, upload_id, exists)

    async def sign_download(self, digest: str) -> SignedUrl:
        await self.size(digest)
        return await self._in_thread(self._signed.url, "GET", blob_key(digest), digest)

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _age_s(meta: ObjectMeta) -> float:
    return max(timedelta(), datetime.now(UTC) - meta["last_modified"]).total_seconds()
