"""Uploading files to the registry's blob store and fetching them, resumed where a connection broke.

Both ends check the digest: a file that arrives with other bytes never appears under its name.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import grpc

from graft.channel import call_metadata, rpc_errors
from graft.common.v1.common_pb2 import File
from graft.digests import CHUNK_BYTES, digest_file
from graft.errors import GraftError, Reason, UnavailableError
from graft.registry.v1 import blob_service_pb2 as pb
from graft.registry.v1.blob_service_pb2_grpc import BlobServiceStub

_PEER = "the registry"
Progress = Callable[[int], None]


def describe_file(root: Path, path: Path) -> File:
    """The File message of a path below root; reads it once for its digest."""
    return File(
        path=path.relative_to(root).as_posix(),
        digest=digest_file(path),
        size_bytes=path.stat().st_size,
    )


class BlobClient:
    """Moves bytes to and from the blob store behind a channel.

    Args:
        channel: an open channel to the registry.
        attempts: how often a broken transfer goes on before its error is raised.
        actor: who asks, for the registry's log.
    """

    def __init__(
        self, channel: grpc.aio.Channel, attempts: int = 5, actor: str | None = None
    ) -> None:
        self._stub = BlobServiceStub(channel)
        self._attempts, self._actor = attempts, actor

    async def missing(self, digests: Sequence[str]) -> set[str]:
        """Those of the digests that the store does not have."""
        with rpc_errors(_PEER):
            answer = await self._stub.FindMissing(
                pb.FindMissingRequest(digests=digests), metadata=call_metadata(actor=self._actor)
            )
        return set(answer.missing)

    async def upload(self, path: Path, file: File, progress: Progress | None = None) -> None:
        """Uploads path, unless the store has it; goes on after a broken connection.

        Args:
            path: the local file.
            file: its digest and size, see describe_file.
            progress: called with the number of bytes that were sent.

        Raises:
            GraftError: STORAGE_FULL, DIGEST_MISMATCH (the file changed meanwhile), UNAVAILABLE.
        """
        for attempt in range(1, self._attempts + 1):
            try:
                if await self._upload_rest(path, file, progress):
                    return
            except UnavailableError as error:
                if error.reason is not Reason.UNAVAILABLE or attempt == self._attempts:
                    raise
                await asyncio.sleep(0.2 * 2**attempt)
        raise GraftError(
            Reason.UNAVAILABLE,
            f"The upload of {file.path or path.name} did not complete in {self._attempts} attempts",
            next_step="Try again: it goes on where it stopped.",
        )

    async def _upload_rest(self, path: Path, file: File, progress: Progress | None) -> bool:
        metadata = call_metadata(actor=self._actor)
        with rpc_errors(_PEER):
            status = await self._stub.QueryWriteStatus(
                pb.QueryWriteStatusRequest(digest=file.digest), metadata=metadata
            )
            if status.complete:
                return True
            answer = await self._stub.Write(
                _chunks(path, file, status.committed_size_bytes, progress), metadata=metadata
            )
        return bool(answer.complete)

    async def fetch(self, file: File, target: Path, progress: Progress | None = None) -> None:
        """Fetches a blob to target, which appears only when all its bytes are there and right.

        A partial file beside it (".part") is gone on with after a broken connection.

        Raises:
            GraftError: BLOB_NOT_FOUND, DIGEST_MISMATCH, UNAVAILABLE.
        """
        part = target.with_name(target.name + ".part")
        for attempt in range(1, self._attempts + 1):
            try:
                await self._fetch_rest(file, part, progress)
                break
            except UnavailableError:
                if attempt == self._attempts:
                    raise
                await asyncio.sleep(0.2 * 2**attempt)
        part.replace(target)

    async def _fetch_rest(self, file: File, part: Path, progress: Progress | None) -> None:
        hasher = hashlib.sha256()
        with part.open("a+b") as out:
            out.seek(0)
            while chunk := out.read(CHUNK_BYTES):
                hasher.update(chunk)
            request = pb.ReadRequest(digest=file.digest, read_offset=out.tell())
            with rpc_errors(_PEER):
                metadata = call_metadata(actor=self._actor)
                async for answer in self._stub.Read(request, metadata=metadata):
                    out.write(answer.data)
                    hasher.update(answer.data)
                    if progress:
                        progress(len(answer.data))
            size_bytes = out.tell()
        if "sha256:" + hasher.hexdigest() != file.digest:
            part.unlink()
            raise GraftError(
                Reason.DIGEST_MISMATCH,
                f"{file.path or part.name} arrived with other bytes than {file.digest} ({size_bytes} bytes)",
                next_step="Try again; if it stays so, the registry's store is damaged: run `graft doctor`.",
            )


async def _chunks(
    path: Path, file: File, offset: int, progress: Progress | None
) -> AsyncIterator[pb.WriteRequest]:
    """The rest of a file from offset; the first message names it, the last one finishes it."""
    with path.open("rb") as source:
        source.seek(offset)
        first = True
        while True:
            data = source.read(CHUNK_BYTES)
            end = offset + len(data) >= file.size_bytes or not data
            request = pb.WriteRequest(write_offset=offset, data=data, finish_write=end)
            if first:
                request.digest, request.size_bytes = file.digest, file.size_bytes
            first = False
            yield request
            offset += len(data)
            if progress:
                progress(len(data))
            if end:
                return
