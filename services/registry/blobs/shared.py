"""An upload that several writers share: order, overlap and digest, whatever keeps the bytes.

A store supplies a Sink, which keeps bytes at the end of what it has. The rules are here once.
"""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, TypeVar

from graft.errors import GraftError, Reason

from services.registry.blobs.base import BlobStatus, BlobUpload, other_bytes

if TYPE_CHECKING:
    from hashlib import _Hash

T = TypeVar("T")


class Sink(ABC):
    """Keeps the bytes of one upload. Its methods may block; they are called from a thread, one at
    a time. After close() a replay() may follow: a writer came while the last one left.
    """

    @abstractmethod
    def published(self) -> bool:
        """Whether the blob exists already."""

    @abstractmethod
    def replay(self, hasher: _Hash) -> int:
        """Feeds what is kept already to the hasher; returns its size in bytes."""

    @abstractmethod
    def append(self, data: bytes, at: int) -> None:
        """Keeps data after the first `at` bytes, or raises and keeps none of it."""

    @abstractmethod
    def publish(self, size_bytes: int) -> None:
        """Makes the bytes durable and the blob exist; size_bytes are all that were kept."""

    @abstractmethod
    def discard(self) -> None:
        """Forgets what was kept."""

    @abstractmethod
    def close(self) -> int:
        """Lets go of the handle. Returns how many of the kept bytes stay for whoever goes on."""


class SharedUpload:
    """The upload of one digest.

    Args:
        digest: "sha256:{hex}" of the whole.
        size_bytes: size of the whole.
        sink: where its bytes go.
        released: called when the last writer has left.
        threads: where the sink's methods run; None for the event loop's own.
    """

    def __init__(
        self,
        digest: str,
        size_bytes: int,
        sink: Sink,
        released: Callable[[SharedUpload], None],
        threads: Executor | None = None,
    ) -> None:
        self.digest, self.size_bytes = digest, size_bytes
        self.committed_size_bytes = 0
        self.complete = False
        self.writers = 0
        self._sink, self._released, self._threads = sink, released, threads
        self._lock = asyncio.Lock()
        self._opened = False
        self._hasher = hashlib.sha256()

    async def open(self) -> None:
        """Reads what an earlier upload left, once."""
        await asyncio.shield(self._open())

    async def append(self, offset: int, data: bytes) -> None:
        """Keeps the part of data that is new. See BlobUpload.append."""
        await asyncio.shield(self._append(offset, data))

    async def finish(self) -> None:
        """Checks and publishes. See BlobUpload.finish."""
        await asyncio.shield(self._finish())

    async def leave(self) -> BlobStatus:
        """Ends one writer's part."""
        self.writers -= 1
        await asyncio.shield(self._close())
        return BlobStatus(self.committed_size_bytes, self.complete)

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, function, *arguments)

    # The lock is held until the thread is done, also when the caller has gone away meanwhile.

    async def _open(self) -> None:
        async with self._lock:
            if self._opened or self.complete:
                return
            if await self._in_thread(self._sink.published):
                # Somebody finished it since this writer asked.
                self.committed_size_bytes, self.complete = self.size_bytes, True
                return
            self._hasher = hashlib.sha256()
            self.committed_size_bytes = await self._in_thread(self._sink.replay, self._hasher)
            if self.committed_size_bytes > self.size_bytes:
                await self._in_thread(self._discard_now)
            self._opened = True

    async def _append(self, offset: int, data: bytes) -> None:
        async with self._lock:
            if self.complete:
                return
            if offset > self.committed_size_bytes:
                raise self.wrong_offset(offset)
            if offset + len(data) > self.size_bytes:
                raise _too_long(self.digest, offset + len(data), self.size_bytes)
            fresh = data[self.committed_size_bytes - offset :]
            if fresh:
                await self._in_thread(self._append_now, fresh)

    def _append_now(self, data: bytes) -> None:
        self._sink.append(data, self.committed_size_bytes)
        self._hasher.update(data)
        self.committed_size_bytes += len(data)

    async def _finish(self) -> None:
        async with self._lock:
            if self.complete:
                return
            if self.committed_size_bytes != self.size_bytes:
                raise _unfinished(self.digest, self.committed_size_bytes, self.size_bytes)
            found = "sha256:" + self._hasher.hexdigest()
            if found != self.digest:
                await self._in_thread(self._discard_now)
                raise other_bytes(self.digest, f"the digest {found}")
            try:
                await self._in_thread(self._sink.publish, self.size_bytes)
            except GraftError as error:
                # What was right when it came is not any more where it was kept.
                if error.reason is Reason.DIGEST_MISMATCH:
                    await self._in_thread(self._discard_now)
                raise
            self.complete = True

    def _discard_now(self) -> None:
        self._sink.discard()
        self._hasher = hashlib.sha256()
        self.committed_size_bytes = 0

    async def _close(self) -> None:
        async with self._lock:
            if self.writers == 0:
                kept_bytes = await self._in_thread(self._sink.close)
                if not self.complete:
                    self.committed_size_bytes, self._opened = kept_bytes, False
        if self.writers == 0:
            self._released(self)

    def wrong_offset(self, offset: int) -> GraftError:
        """UPLOAD_OFFSET, with where to go on."""
        kept = self.committed_size_bytes
        return GraftError(
            Reason.UPLOAD_OFFSET,
            f"A chunk of {self.digest} begins at {offset}, but {kept} bytes are kept",
            next_step=f"Go on at {kept}.",
            committed_size_bytes=kept,
        )


class Writer(BlobUpload):
    """One writer of a shared upload. It must not skip or repeat bytes of its own."""

    def __init__(self, upload: SharedUpload) -> None:
        self._upload = upload
        self._position: int | None = None
        self._alone = upload.writers == 0
        upload.writers += 1

    async def append(self, write_offset: int, data: bytes) -> None:
        kept = self._upload.committed_size_bytes
        if self._position is None:
            # Beside another writer the kept size moves after this one asked for it.
            fits = write_offset == kept or (not self._alone and 0 <= write_offset < kept)
        else:
            fits = write_offset == self._position
        if not fits and not self._upload.complete:
            raise self._upload.wrong_offset(write_offset)
        await self._upload.append(write_offset, data)
        self._position = write_offset + len(data)

    async def finish(self) -> None:
        await self._upload.finish()

    async def close(self) -> BlobStatus:
        return await self._upload.leave()


def _too_long(digest: str, sent_bytes: int, size_bytes: int) -> GraftError:
    return GraftError(
        Reason.INVALID_REQUEST,
        f"{sent_bytes} bytes were sent of {digest}, which was said to have {size_bytes}",
        next_step="Send the file's real size as size_bytes in the first message.",
    )


def _unfinished(digest: str, kept_bytes: int, size_bytes: int) -> GraftError:
    return GraftError(
        Reason.INVALID_REQUEST,
        f"The upload of {digest} was finished at {kept_bytes} of {size_bytes} bytes",
        next_step=f"Go on at {kept_bytes} and set finish_write on the last chunk.",
        committed_size_bytes=kept_bytes,
    )


class Uploads:
    """The uploads that have a writer now, so that a second writer of a digest joins the first.

    Args:
        make_sink: makes the sink of a digest's upload.
        threads: where sinks work; None for the event loop's own threads.
    """

    def __init__(self, make_sink: Callable[[str], Sink], threads: Executor | None = None) -> None:
        self._make_sink, self._threads = make_sink, threads
        self._open: dict[str, SharedUpload] = {}

    async def join(self, digest: str, size_bytes: int) -> BlobUpload:
        """A writer of the digest's upload, which begins with it if there is none."""
        upload = self._open.get(digest)
        if upload is None:
            sink = self._make_sink(digest)
            upload = SharedUpload(digest, size_bytes, sink, self._leave, self._threads)
            self._open[digest] = upload
        if upload.size_bytes != size_bytes:
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"{digest} is being uploaded with {upload.size_bytes} bytes, not {size_bytes}",
                next_step="Send the file's real size as size_bytes.",
            )
        writer = Writer(upload)
        try:
            await upload.open()
        except BaseException:
            await writer.close()
            raise
        return writer

    def is_open(self, digest: str) -> bool:
        """Whether somebody writes that digest here now."""
        return digest in self._open

    def _leave(self, upload: SharedUpload) -> None:
        if self._open.get(upload.digest) is upload:
            del self._open[upload.digest]
