"""The seam of the blob store: bytes by their SHA-256, written resumably and read by range.

An upload is shared by all who write the same digest at once. What is kept of it survives a broken
connection; the blob exists for readers only after all its bytes were checked against its digest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from graft.digests import CHUNK_BYTES, is_digest
from graft.errors import GraftError, Reason

__all__ = [
    "CHUNK_BYTES",
    "BlobStatus",
    "BlobStore",
    "BlobUpload",
    "SignedUpload",
    "SignedUrl",
    "StoredBlob",
    "check_digest",
    "damaged",
    "not_found",
    "other_bytes",
    "range_end",
    "storage_full",
]


@dataclass(frozen=True, slots=True)
class BlobStatus:
    """Bytes kept of a blob, and whether it exists; (0, False) when nothing is known of it."""

    committed_size_bytes: int
    complete: bool


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that is there. Its age is told by the store's clock: compare it to hours, not seconds."""

    digest: str
    size_bytes: int
    age_s: float


@dataclass(frozen=True, slots=True)
class SignedUrl:
    """An HTTP address that works without credentials until expire_time (UTC)."""

    url: str
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class SignedUpload:
    """Where to put a blob's bytes; upload_id names the upload when it is finished."""

    upload_id: str
    target: SignedUrl


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

    @abstractmethod
    async def delete(self, digest: str) -> None:
        """Removes a blob, if it is there. Reads that have begun may fail from here on."""

    @abstractmethod
    async def stored(self, after: str = "", limit: int = 1000) -> list[StoredBlob]:
        """The next blobs in the order of their digests.

        Args:
            after: the last digest of the page before; "" to begin.
            limit: most blobs in this page; fewer than this does not mean the end, none does.
        """

    @abstractmethod
    async def expire_uploads(self, older_than_s: float) -> int:
        """Removes what is kept of uploads that nobody has written to for so long.

        Returns:
            How many uploads were removed.
        """

    async def sign_upload(self, digest: str, size_bytes: int) -> SignedUpload | None:
        """A URL that takes the blob's bytes; None when the blob exists already.

        Raises:
            GraftError: NOT_SUPPORTED when this store has no such URLs, or not for that size.
        """
        raise not_supported()

    async def finish_signed_upload(self, digest: str, size_bytes: int, upload_id: str) -> None:
        """Checks the bytes that were put to a signed URL, and makes the blob exist.

        Raises:
            GraftError: NOT_SUPPORTED; INVALID_REQUEST when nothing was put there; DIGEST_MISMATCH,
                and nothing is kept.
        """
        raise not_supported()

    async def sign_download(self, digest: str) -> SignedUrl:
        """A URL that answers the blob's bytes.

        Raises:
            GraftError: NOT_SUPPORTED; BLOB_NOT_FOUND.
        """
        raise not_supported()

    async def close(self) -> None:  # noqa: B027 - most stores hold nothing
        """Lets go of connections and threads."""


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


def not_supported() -> GraftError:
    """NOT_SUPPORTED, for signed URLs."""
    return GraftError(
        Reason.NOT_SUPPORTED,
        "This registry's store gives no signed URLs for such a blob",
        next_step="Send the bytes with BlobService.Write, and get them with BlobService.Read.",
    )


def other_bytes(digest: str, found: str) -> GraftError:
    """DIGEST_MISMATCH of an upload; found says what arrived instead."""
    return GraftError(
        Reason.DIGEST_MISMATCH,
        f"The bytes sent as {digest} have {found}; nothing of them was kept",
        next_step="Compute the digest again: the file changed, or it arrived damaged.",
        expected=digest,
        found=found,
    )


def damaged(digest: str, found: str) -> GraftError:
    """DIGEST_MISMATCH of a stored blob; found says what lies there instead."""
    return GraftError(
        Reason.DIGEST_MISMATCH,
        f"The stored bytes of {digest} {found}: the store is damaged",
        next_step="Remove the damaged blob from the store, upload the file again, check the disk.",
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
