"""The seam of the blob store: bytes by their SHA-256, written resumably and read by range.

An upload is shared by all who write the same digest at once. What is kept of it survives a broken
connection; the blob exists for readers only after all its bytes were checked against its digest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from graft.digests import CHUNK_BYTES, is_digest
from graft.errors import GraftError, Reason

__all__ = [
    "CHUNK_BYTES",
    "BlobStatus",
    "BlobStore",
    "BlobUpload",
    "check_digest",
    "not_found",
    "range_end",
    "storage_full",
]


@dataclass(frozen=True, slots=True)
class BlobStatus:
    """Bytes kept of a blob, and whether it exists; (0, False) when nothing is known of it."""

    committed_size_bytes: int
    complete: bool


class BlobUpload(ABC):
    """One writer's part in the upload of one blob."""

    @abstractmethod
    async def append(self, write_offset: int, data: bytes) -> None:
        """Keeps data.

        Args:
            write_offset: where data begins; the end of what this writer sent before.
            data: what another writer has kept meanwhile is skipped.

        Raises:
            GraftError: UPLOAD_OFFSET with committed_size_bytes, INVALID_REQUEST for bytes past the
                declared size, STORAGE_FULL.
        """

    @abstractmethod
    async def finish(self) -> None:
        """Checks the digest and makes the blob exist.

        Raises:
            GraftError: INVALID_REQUEST when bytes are missing; DIGEST_MISMATCH, and nothing is kept.
        """

    @abstractmethod
    async def close(self) -> BlobStatus:
        """Ends this writer's part; what was kept stays for whoever goes on. Says what that is."""


class BlobStore(ABC):
    """Content-addressed bytes. Digests are "sha256:{hex}"; others are INVALID_REQUEST."""

    @abstractmethod
    async def begin_upload(self, digest: str, size_bytes: int) -> BlobUpload | None:
        """Begins or goes on with a blob's upload; None when the blob exists already.

        Raises:
            GraftError: STORAGE_FULL when the rest does not fit; INVALID_REQUEST when somebody
                else is writing the same digest with another size.
        """

    @abstractmethod
    async def status(self, digest: str) -> BlobStatus:
        """What is kept of a blob."""

    @abstractmethod
    async def missing(self, digests: Sequence[str]) -> list[str]:
        """Those of the digests that do not exist, in their order."""

    @abstractmethod
    async def size(self, digest: str) -> int:
        """Size of a blob in bytes.

        Raises:
            GraftError: BLOB_NOT_FOUND.
        """

    @abstractmethod
    def read(self, digest: str, offset: int = 0, limit: int = 0) -> AsyncIterator[bytes]:
        """The bytes from offset on, at most limit (0: to the end), in chunks of at most 1 MiB.

        Raises:
            GraftError: BLOB_NOT_FOUND; INVALID_REQUEST when offset is past the end.
        """

    @abstractmethod
    async def total_bytes(self) -> int:
        """Size of all blobs together."""


def check_digest(digest: str) -> str:
    """The 64 hexadecimal digits of a digest.

    Raises:
        GraftError: INVALID_REQUEST.
    """
    if not is_digest(digest):
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"{digest[:80]!r} is not a digest",
            next_step="Write 'sha256:' and the 64 lower-case hexadecimal digits of the bytes' SHA-256.",
        )
    return digest.removeprefix("sha256:")


def range_end(digest: str, size_bytes: int, offset: int, limit: int) -> int:
    """Where a read of a blob of that size ends, checked."""
    if offset < 0 or limit < 0 or offset > size_bytes:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"Bytes from {offset}, at most {limit}, cannot be read of {digest}: it has {size_bytes}",
            next_step="Read from 0 to its size; a limit of 0 means to the end.",
        )
    return min(size_bytes, offset + limit) if limit else size_bytes


def not_found(digest: str) -> GraftError:
    """BLOB_NOT_FOUND."""
    return GraftError(
        Reason.BLOB_NOT_FOUND,
        f"There is no blob {digest}",
        next_step="Upload it with BlobService.Write first.",
        digest=digest,
    )


def storage_full(digest: str, needed_bytes: int, free_bytes: int) -> GraftError:
    """STORAGE_FULL, with what is needed and what is there."""
    return GraftError(
        Reason.STORAGE_FULL,
        f"The registry's disk has {free_bytes} bytes free, and {digest} needs {needed_bytes} more"
        if needed_bytes
        else f"The registry's disk is full or its quota used up, so {digest} cannot be stored",
        next_step="Free space below its data folder, then upload again: it goes on where it stopped.",
        needed_bytes=needed_bytes,
        free_bytes=free_bytes,
    )
