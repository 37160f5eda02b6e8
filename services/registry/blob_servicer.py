"""The RPCs of BlobService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from graft.errors import GraftError, Reason
from graft.registry.v1 import blob_service_pb2 as pb
from graft.registry.v1 import blob_service_pb2_grpc as rpc

from services.common.interceptors import Context
from services.registry.blobs.base import (
    CHUNK_BYTES,
    BlobStatus,
    BlobStore,
    BlobUpload,
    check_digest,
)
from services.registry.errors import invalid
from services.registry.metrics import RegistryMetrics
from services.registry.objects import Objects

_MAX_DIGESTS = 1000
_READ_ON_BYTES = 8 * 1024 * 1024
_READ_ON_S = 1.0


class BlobServicer(rpc.BlobServiceServicer):
    """Answers BlobService.

    Args:
        blobs: what exists.
        max_file_bytes: largest blob that is taken.
        metrics: counts what is stored.
    """

    def __init__(
        self, blobs: Objects | BlobStore, max_file_bytes: int, metrics: RegistryMetrics
    ) -> None:
        self._blobs, self._max_file_bytes, self._metrics = blobs, max_file_bytes, metrics

    async def Write(
        self, request_iterator: AsyncIterator[pb.WriteRequest], context: Context
    ) -> pb.WriteResponse:
        try:
            return await self._write(request_iterator)
        except GraftError:
            await _read_on(request_iterator)
            raise

    async def _write(self, request_iterator: AsyncIterator[pb.WriteRequest]) -> pb.WriteResponse:
        first = await anext(aiter(request_iterator), None)
        if first is None:
            raise invalid("Write got no message", "Send the digest and the first chunk.")
        self._check_blob(first.digest, first.size_bytes)
        upload = await self._blobs.begin_upload(first.digest, first.size_bytes)
        if upload is None:
            return _answer(await self._blobs.status(first.digest))
        finished = False
        try:
            finished = await _receive(upload, first, request_iterator)
        finally:
            status = await upload.close()
        if finished:
            self._metrics.blob_bytes.inc(status.committed_size_bytes)
        return _answer(status)

    def _check_blob(self, digest: str, size_bytes: int) -> None:
        check_digest(digest)
        if size_bytes < 0:
            raise invalid(f"size_bytes is {size_bytes}", "Send the size of the whole blob.")
        if size_bytes > self._max_file_bytes:
            raise GraftError(
                Reason.TOO_LARGE,
                f"{digest} has {size_bytes} bytes, and {self._max_file_bytes} are allowed",
                next_step="Raise GRAFT_REGISTRY_MAX_FILE_BYTES, or store a smaller file.",
                max_file_bytes=self._max_file_bytes,
            )

    async def QueryWriteStatus(
        self, request: pb.QueryWriteStatusRequest, context: Context
    ) -> pb.QueryWriteStatusResponse:
        status = await self._blobs.status(request.digest)
        return pb.QueryWriteStatusResponse(
            committed_size_bytes=status.committed_size_bytes, complete=status.complete
        )

    async def Read(
        self, request: pb.ReadRequest, context: Context
    ) -> AsyncIterator[pb.ReadResponse]:
        chunks = self._blobs.read(request.digest, request.read_offset, request.read_limit)
        async for data in chunks:
            yield pb.ReadResponse(data=data)

    async def FindMissing(
        self, request: pb.FindMissingRequest, context: Context
    ) -> pb.FindMissingResponse:
        if len(request.digests) > _MAX_DIGESTS:
            raise invalid(
                f"{len(request.digests)} digests were asked for", f"Ask for {_MAX_DIGESTS} at most."
            )
        return pb.FindMissingResponse(missing=await self._blobs.missing(request.digests))

    async def SignUpload(
        self, request: pb.SignUploadRequest, context: Context
    ) -> pb.SignUploadResponse:
        self._check_blob(request.digest, request.size_bytes)
        signed = await self._blobs.sign_upload(request.digest, request.size_bytes)
        if signed is None:
            return pb.SignUploadResponse(complete=True)
        answer = pb.SignUploadResponse(upload_id=signed.upload_id, url=signed.target.url)
        answer.expire_time.FromDatetime(signed.target.expire_time)
        return answer

    async def FinishUpload(
        self, request: pb.FinishUploadRequest, context: Context
    ) -> pb.FinishUploadResponse:
        self._check_blob(request.digest, request.size_bytes)
        existed = not await self._blobs.missing([request.digest])
        await self._blobs.finish_signed_upload(
            request.digest, request.size_bytes, request.upload_id
        )
        if not existed:
            self._metrics.blob_bytes.inc(request.size_bytes)
        return pb.FinishUploadResponse(size_bytes=request.size_bytes)

    async def SignDownload(
        self, request: pb.SignDownloadRequest, context: Context
    ) -> pb.SignDownloadResponse:
        signed = await self._blobs.sign_download(request.digest)
        answer = pb.SignDownloadResponse(
            url=signed.url, size_bytes=await self._blobs.size(request.digest)
        )
        answer.expire_time.FromDatetime(signed.expire_time)
        return answer


async def _read_on(requests: AsyncIterator[pb.WriteRequest]) -> None:
    """Takes what a refused client still sends, within bounds: it loses the reason if it writes after it."""
    size_bytes = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_READ_ON_S):
            async for request in requests:
                size_bytes += len(request.data)
                if size_bytes > _READ_ON_BYTES:
                    return


async def _receive(
    upload: BlobUpload, first: pb.WriteRequest, rest: AsyncIterator[pb.WriteRequest]
) -> bool:
    """Takes all chunks; says whether the last one finished the blob."""
    chunk: pb.WriteRequest | None = first
    while chunk is not None:
        if len(chunk.data) > CHUNK_BYTES:
            raise invalid(
                f"A chunk of {len(chunk.data)} bytes was sent", f"Send at most {CHUNK_BYTES}."
            )
        await upload.append(chunk.write_offset, chunk.data)
        if chunk.finish_write:
            await upload.finish()
            return True
        chunk = await anext(aiter(rest), None)
    return False


def _answer(status: BlobStatus) -> pb.WriteResponse:
    return pb.WriteResponse(
        committed_size_bytes=status.committed_size_bytes, complete=status.complete
    )
