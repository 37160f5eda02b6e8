"""Uploading files to the registry's blob store and fetching them, resumed where a connection broke.

Both ends check the digest: a file that arrives with other bytes never appears under its name. Large
files go past the registry by signed URLs where its store gives them.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import grpc

from graft.channel import call_metadata, rpc_errors
from graft.common.v1.common_pb2 import File
from graft.digests import CHUNK_BYTES, digest_file
from graft.errors import GraftError, InvalidError, Reason, UnavailableError, from_rpc_error
from graft.registry.v1 import blob_service_pb2 as pb
from graft.registry.v1.blob_service_pb2_grpc import BlobServiceStub
from graft.signed import get_rest, put_file

T = TypeVar("T")
_PEER = "the registry"
_DIRECT_BYTES = 64 * 1024 * 1024
# After so many failures in a row, bytes go through the registry: it may reach what this host cannot.
_DIRECT_ATTEMPTS = 2
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
        attempts: how often in a row a transfer may fail without a byte more before its error is raised.
        actor: who asks, for the registry's log.
        direct_bytes: files from this size on go past the registry where its store allows it.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        attempts: int = 5,
        actor: str | None = None,
        direct_bytes: int = _DIRECT_BYTES,
    ) -> None:
        self._stub = BlobServiceStub(channel)
        self._attempts, self._actor, self._direct_bytes = attempts, actor, direct_bytes

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
        tries, seen = _Tries(self._attempts), _HighWater(progress)
        kept = await self._kept(file, tries)
        while kept is not None:
            try:
                if not kept and await self._put(path, file, seen, tries):
                    return
                if await self._write(path, file, kept, seen):
                    return
                await tries.again(_incomplete(path, file), kept)
            except UnavailableError as error:
                if error.reason is not Reason.UNAVAILABLE:
                    raise
                await tries.again(error, kept)
            except InvalidError as error:
                if error.reason is not Reason.UPLOAD_OFFSET:
                    raise
                # Another writer was faster, or another registry has other bytes of it.
                await tries.again(error, kept)
                kept = int(error.metadata["committed_size_bytes"])
                continue
            kept = await self._kept(file, tries)

    async def _kept(self, file: File, tries: _Tries) -> int | None:
        """How many bytes the store keeps of a file; None when it has it."""
        while True:
            try:
                with rpc_errors(_PEER):
                    status = await self._stub.QueryWriteStatus(
                        pb.QueryWriteStatusRequest(digest=file.digest),
                        metadata=call_metadata(actor=self._actor),
                    )
                return None if status.complete else status.committed_size_bytes
            except UnavailableError as error:
                await tries.again(error, 0)

    async def _write(self, path: Path, file: File, offset: int, seen: _HighWater) -> bool:
        with rpc_errors(_PEER):
            answer = await self._stub.Write(
                _chunks(path, file, offset, seen), metadata=call_metadata(actor=self._actor)
            )
        return bool(answer.complete)

    async def _put(self, path: Path, file: File, seen: _HighWater, tries: _Tries) -> bool:
        """Uploads by a signed URL; False where that is not to be done."""
        if file.size_bytes < self._direct_bytes or tries.failures >= _DIRECT_ATTEMPTS:
            return False
        metadata = call_metadata(actor=self._actor)
        ask = pb.SignUploadRequest(digest=file.digest, size_bytes=file.size_bytes)
        signed = await _if_supported(self._stub.SignUpload(ask, metadata=metadata))
        if signed is None or signed.complete:
            return signed is not None
        await _in_thread(put_file, signed.url, path, file.size_bytes, _on_loop(seen.at))
        with rpc_errors(_PEER):
            request = pb.FinishUploadRequest(
                digest=file.digest, size_bytes=file.size_bytes, upload_id=signed.upload_id
            )
            await self._stub.FinishUpload(request, metadata=metadata)
        return True

    async def fetch(self, file: File, target: Path, progress: Progress | None = None) -> None:
        """Fetches a blob to target, which appears only when all its bytes are there and right.

        A partial file beside it (".part") is gone on with after a broken connection.

        Raises:
            GraftError: BLOB_NOT_FOUND, DIGEST_MISMATCH, UNAVAILABLE.
        """
        part = target.with_name(target.name + ".part")
        tries = _Tries(self._attempts)
        while True:
            began = _size_of(part)
            try:
                found = await self._fetch_rest(file, part, progress, tries)
            except UnavailableError as error:
                await tries.again(error, _size_of(part))
                continue
            except GraftError as error:
                if error.reason is Reason.DIGEST_MISMATCH:
                    part.unlink(missing_ok=True)
                raise
            if found == file.digest:
                part.replace(target)
                return
            size_bytes = _size_of(part)
            part.unlink()
            # What an earlier attempt left may be what is wrong: once more from the first byte.
            if not began:
                raise _arrived_damaged(file, part, size_bytes)

    async def _fetch_rest(
        self, file: File, part: Path, progress: Progress | None, tries: _Tries
    ) -> str:
        """Completes a part; returns its digest."""
        metadata = call_metadata(actor=self._actor)
        if file.size_bytes >= self._direct_bytes and tries.failures < _DIRECT_ATTEMPTS:
            signed = await _if_supported(
                self._stub.SignDownload(
                    pb.SignDownloadRequest(digest=file.digest), metadata=metadata
                )
            )
            if signed is not None:
                report = _on_loop(progress) if progress else None
                return await _in_thread(_download, signed.url, part, signed.size_bytes, report)
        return await self._read(file, part, progress)

    async def _read(self, file: File, part: Path, progress: Progress | None) -> str:
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
        return "sha256:" + hasher.hexdigest()


def _download(
    url: str,
    part: Path,
    size_bytes: int,
    report: Progress | None,
    stop: threading.Event,
) -> str:
    """Completes a part from a signed URL; returns its digest. Runs in a thread."""
    hasher = hashlib.sha256()

    def got(data: bytes) -> None:
        hasher.update(data)
        if report:
            report(len(data))

    with part.open("a+b") as out:
        out.seek(0)
        while chunk := out.read(CHUNK_BYTES):
            hasher.update(chunk)
        get_rest(url, out, size_bytes, got, stop)
    return "sha256:" + hasher.hexdigest()


class _Tries:
    """Lets a transfer fail so many times in a row without a byte more, with growing pauses."""

    def __init__(self, attempts: int) -> None:
        self._attempts, self._best = attempts, 0
        self.failures = 0

    async def again(self, error: GraftError, position: int) -> None:
        """Waits before the next try; raises error when there is to be none."""
        if position > self._best:
            self._best, self.failures = position, 0
        self.failures += 1
        if self.failures >= self._attempts:
            raise error
        await asyncio.sleep(0.2 * 2**self.failures)


class _HighWater:
    """Reports each byte of a file once, however often it is sent."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._at = progress, 0

    def begin(self, offset: int) -> None:
        """A first attempt begins there."""
        self._at = max(self._at, offset)

    def at(self, position: int) -> None:
        """So much was sent."""
        if position > self._at:
            fresh, self._at = position - self._at, position
            if self._progress:
                self._progress(fresh)


async def _if_supported(call: Awaitable[T]) -> T | None:
    """What a call answers; None when the registry, an old one or its store, cannot do it."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return None
        raise from_rpc_error(error, _PEER) from None


async def _in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Runs function(*arguments, stop) in a thread that ends soon after its caller was cancelled."""
    stop = threading.Event()
    try:
        return await asyncio.to_thread(function, *arguments, stop)
    finally:
        stop.set()


def _on_loop(report: Callable[[int], None]) -> Callable[[int], None]:
    """report, called from a thread and run in this event loop."""
    loop = asyncio.get_running_loop()

    def later(number: int) -> None:
        loop.call_soon_threadsafe(report, number)

    return later


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _incomplete(path: Path, file: File) -> GraftError:
    return GraftError(
        Reason.UNAVAILABLE,
        f"The upload of {file.path or path.name} did not complete",
        next_step="Try again: it goes on where it stopped.",
    )


def _arrived_damaged(file: File, part: Path, size_bytes: int) -> GraftError:
    return GraftError(
        Reason.DIGEST_MISMATCH,
        f"{file.path or part.name} arrived with other bytes than {file.digest} ({size_bytes} bytes)",
        next_step="Try again; if it stays so, the registry's store is damaged: run `graft doctor`.",
    )


async def _chunks(
    path: Path, file: File, offset: int, seen: _HighWater
) -> AsyncIterator[pb.WriteRequest]:
    """The rest of a file from offset; the first message names it, the last one finishes it."""
    seen.begin(offset)
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
            seen.at(offset)
            if end:
                return
