"""The blobs of an archive, taken in the order in which they lie there, each verified before it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path

from graft.archive.tar import ArchiveReader, Member, refused
from graft.common.v1.common_pb2 import File
from graft.connection import Connection
from graft.errors import GraftError, Reason

_PREFIX = "blobs/"


class BlobSource:
    """Brings blobs to the registry as far as it lacks them.

    Args:
        reader: stands behind the header of member.
        member: the first one after the records; None where there is none.
        connection: to the registry.
        folder: takes one blob at a time.
    """

    def __init__(
        self, reader: ArchiveReader, member: Member | None, connection: Connection, folder: Path
    ) -> None:
        self._reader, self._member = reader, member
        self._connection, self._folder = connection, folder
        self._sizes: Mapping[str, int] = {}
        self._seen: set[str] = set()
        self.uploaded = 0

    def expect(self, sizes_bytes: Mapping[str, int]) -> None:
        """Says which digests the records name, and how large they are; others are refused."""
        self._sizes = sizes_bytes

    async def bring(self, files: Iterable[File]) -> None:
        """Returns when the registry has all of these.

        Raises:
            GraftError: ARCHIVE_REFUSED, DIGEST_MISMATCH.
        """
        wanted = {file.digest: file for file in files}
        missing = await self._connection.blobs.missing(list(wanted))
        while missing:
            if self._member is None:
                raise refused(f"it lacks {wanted[min(missing)].path} ({min(missing)})")
            digest = await self._take()
            missing.discard(digest)

    async def finish(self) -> None:
        """Looks at what was not needed, to the archive's end: it must be sound all the same."""
        while self._member is not None:
            await asyncio.to_thread(self._pass_over)

    async def _take(self) -> str:
        """Sends the blob that comes next, unless the registry has it."""
        assert self._member is not None
        digest = self._checked(self._member)
        if not await self._connection.blobs.missing([digest]):
            await asyncio.to_thread(self._pass_over)
            return digest
        path = self._folder / "blob"
        await asyncio.to_thread(self._copy, digest, path)
        file = File(path=self._member.name, digest=digest, size_bytes=self._member.size_bytes)
        await self._connection.blobs.upload(path, file)
        path.unlink()
        self.uploaded += 1
        await asyncio.to_thread(self._next)
        return digest

    def _copy(self, digest: str, path: Path) -> None:
        assert self._member is not None
        with path.open("wb") as file:
            found = self._reader.copy(self._member, file.write)
        if found != digest:
            raise GraftError(
                Reason.DIGEST_MISMATCH,
                f"{self._member.name} of the archive has the digest {found}",
                next_step="Copy the archive again: it was damaged or changed.",
            )

    def _pass_over(self) -> None:
        assert self._member is not None
        digest = self._checked(self._member)
        if self._reader.copy(self._member, len) != digest:
            raise refused(f"{self._member.name} has other bytes than its name says")
        self._next()

    def _next(self) -> None:
        assert self._member is not None
        self._seen.add(self._checked(self._member))
        self._member = self._reader.next()

    def _checked(self, member: Member) -> str:
        digest = "sha256:" + member.name.removeprefix(_PREFIX)
        if not member.name.startswith(_PREFIX) or digest not in self._sizes:
            raise refused(f"it holds {member.name}, which no record names")
        if digest in self._seen:
            raise refused(f"{member.name} is there twice")
        if member.size_bytes != self._sizes[digest]:
            raise refused(
                f"{member.name} has {member.size_bytes} bytes, the records say {self._sizes[digest]}"
            )
        return digest
