"""Reads a version's files out of the blob store: whole where they are small, else as a stream."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator

from graft.errors import GraftError, NotFoundError

from services.registry.admission import magic
from services.registry.admission.limits import MIB
from services.registry.admission.paths import CHECK
from services.registry.blobs.base import BlobStore
from services.registry.domain import File
from services.registry.errors import refused

# What is held in memory instead of being read in parts.
WHOLE_BYTES = MIB
# A text has no other control characters than those that move the caret.
_CONTROLS = bytes(byte for byte in range(32) if byte not in b"\t\n\v\f\r")


class Content:
    """The bytes of one version's files.

    Args:
        blobs: where they are.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    async def whole(self, file: File) -> bytes:
        """All bytes of a small file.

        Raises:
            GraftError: VERSION_REFUSED when it was not uploaded or has another size.
        """
        chunks = [chunk async for chunk in self.stream(file)]
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if len(data) != file.size_bytes:
            await self.check_size(file)
        return data

    async def part(self, file: File, offset: int, limit: int) -> bytes:
        """At most limit bytes from offset on.

        Raises:
            GraftError: VERSION_REFUSED when it was not uploaded.
        """
        return b"".join([chunk async for chunk in self.stream(file, offset, limit)])

    async def stream(self, file: File, offset: int = 0, limit: int = 0) -> AsyncIterator[bytes]:
        """The bytes from offset on, in chunks of at most 1 MiB.

        Raises:
            GraftError: VERSION_REFUSED when it was not uploaded.
        """
        # Never more than was declared: what is held in memory is bounded by that.
        most_bytes = limit or file.size_bytes - offset + 1
        try:
            async for chunk in self._blobs.read(file.digest, offset, most_bytes):
                yield chunk
        except NotFoundError:
            raise _not_uploaded(file) from None

    async def check_size(self, file: File) -> None:
        """Compares a file's size with the one that is listed.

        Raises:
            GraftError: VERSION_REFUSED, also when it was not uploaded.
        """
        try:
            size_bytes = await self._blobs.size(file.digest)
        except NotFoundError:
            raise _not_uploaded(file) from None
        if size_bytes != file.size_bytes:
            raise refused(
                CHECK,
                f"{file.path} is said to have {file.size_bytes} bytes and has {size_bytes}",
                "List the file with its real size.",
                path=file.path,
            )

    async def check_text(self, file: File) -> None:
        """Reads a file to its end, which must be text and nothing else besides.

        Raises:
            GraftError: VERSION_REFUSED.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        seen_bytes, tail = 0, b""
        async for chunk in self.stream(file):
            if not seen_bytes:
                refuse_disguise(file.path, chunk)
            seen_bytes += len(chunk)
            tail = (tail + chunk)[-magic.TAIL_BYTES :]
            try:
                decoder.decode(chunk, final=seen_bytes == file.size_bytes)
                clean = len(chunk.translate(None, _CONTROLS)) == len(chunk)
            except UnicodeDecodeError:
                clean = False
            if not clean:
                raise refused(
                    CHECK,
                    f"{file.path} is not text in UTF-8",
                    "Leave it out, or save it as text.",
                    path=file.path,
                )
        if seen_bytes != file.size_bytes:
            await self.check_size(file)
        refuse_zip(file.path, tail)


def refuse_disguise(path: str, head: bytes) -> None:
    """Refuses a file whose first bytes are an archive's, a pickle's or a program's.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    found = magic.format_of(head[: magic.HEAD_BYTES])
    if found:
        raise _disguised(path, found)


def refuse_zip(path: str, tail: bytes) -> None:
    """Refuses a file that opens as a zip archive too: those are read from their end.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    if magic.ends_as_zip(tail):
        raise _disguised(path, "a zip archive besides")


def _disguised(path: str, found: str) -> GraftError:
    return refused(CHECK, f"{path} is {found}, whatever its name says", "Leave it out.", path=path)


def _not_uploaded(file: File) -> GraftError:
    return refused(
        CHECK,
        f"{file.path} ({file.digest}) was not uploaded",
        "Upload it with BlobService.Write, then commit again.",
        path=file.path,
        digest=file.digest,
    )
