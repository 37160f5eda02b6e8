"""An upload that several writers share: order, overlap and digest, whatever keeps the bytes.

A store supplies a Sink, which keeps bytes at the end of what it has. The rules are here once.
"""

from __future__ import annotations

import asyncio
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from graft.errors import GraftError, Reason

from services.registry.blobs.base import BlobStatus, BlobUpload

if TYPE_CHECKING:
    from hashlib import _Hash


class Sink(ABC):
    """Keeps the bytes of one upload. Its methods may block; they are called from a thread, one at
    a time. After close() another append() may follow: a writer came while the last one left.
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
    def publish(self) -> None:
        """Makes the bytes durable and the blob exist."""

    @abstractmethod
    def discard(self) -> None:
        """Forgets what was kept."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of the handle; what was kept stays."""


class SharedUpload:
    """The upload of one digest.

    Args:
        digest: "sha256:{hex}" of the whole.
        size_bytes: size of the whole.
        sink: where its bytes go.
        released: called when the last writer has left.
    """

    def __init__(
        self, digest: str, size_bytes: int, sink: Sink, released: Callable[[SharedUpload], None]
    ) -> None:
        self.digest, self.size_bytes = digest, size_bytes
        self.committed_size_bytes = 0
        self.complete = False
        self.writers = 0
        self._sink, self._released = sink, released
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

    # The lock is held until the thread is done, also when the caller has gone away meanwhile.

    async def _open(self) -> None:
        async with self._lock:
            if not self._opened and await asyncio.to_thread(self._sink.published):
                # Somebody finished it since this writer asked.
                self.committed_size_bytes, self.complete = self.size_bytes, True
            elif not self._opened:
                self.committed_size_bytes = await asyncio.to_thread(self._sink.replay, self._hasher)
                if self.committed_size_bytes > self.size_bytes:
                    await asyncio.to_thread(self._discard_now)
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
                await asyncio.to_thread(self._append_now, fresh)

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
                await asyncio.to_thread(self._discard_now)
                raise _other_bytes(self.digest, found)
            await asyncio.to_thread(self._sink.publish)
            self.complete = True

    def _discard_now(self) -> None:
        self._sink.discard()
        self._hasher = hashlib.sha256()
        self.committed_size_bytes = 0

    async def _close(self) -> None:
        async with self._lock:
            if self.writers == 0:
                await asyncio.to_thread(self._sink.close)
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


def _other_bytes(digest: str, found: str) -> GraftError:
    return GraftError(
        Reason.DIGEST_MISMATCH,
        f"The bytes sent as {digest} have the digest {found}; nothing of them was kept",
        next_step="Compute the digest again: the file changed, or it arrived damaged.",
        expected=digest,
        found=found,
    )


class Uploads:
    """The uploads that have a writer now, so that a second writer of a digest joins the first.

    Args:
        make_sink: makes the sink of a digest's upload.
    """

    def __init__(self, make_sink: Callable[[str], Sink]) -> None:
        self._make_sink = make_sink
        self._open: dict[str, SharedUpload] = {}

    async def join(self, digest: str, size_bytes: int) -> BlobUpload:
        """A writer of the digest's upload, which begins with it if there is none."""
        upload = self._open.get(digest)
        if upload is None:
            upload = SharedUpload(digest, size_bytes, self._make_sink(digest), self._leave)
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

    def _leave(self, upload: SharedUpload) -> None:
        if self._open.get(upload.digest) is upload:
            del self._open[upload.digest]
