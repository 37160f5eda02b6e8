"""Uploads to signed URLs: bytes that bypass the registry, and the check before they become a blob.

Whoever has a URL can put again until it expires. So what was put is first copied to a key that no URL
was given for, checked there, and only then copied to the blob's own key.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Literal

import obstore
from graft.errors import GraftError, Reason
from obstore.store import S3Store

from services.common.logs import get_logger
from services.registry.blobs.base import (
    CHUNK_BYTES,
    SignedUpload,
    SignedUrl,
    check_digest,
    not_supported,
    other_bytes,
)
from services.registry.blobs.s3_client import S3Options, store_errors
from services.registry.blobs.s3_sink import blob_key

# What S3 takes by one PUT, and copies by one request.
_MAX_BYTES = 5 * 1024**3
_UPLOAD_ID = re.compile("[0-9a-f]{32}")


class SignedUploads:
    """Signs URLs, and checks what was put to them. Its methods block: call them from a thread.

    Args:
        options: how long URLs work.
        store: client for small requests.
        streams: client for long ones.
    """

    def __init__(self, options: S3Options, store: S3Store, streams: S3Store) -> None:
        self._store, self._streams = store, streams
        self._signer = options.connect(public=True)
        self._ttl = timedelta(seconds=options.signed_url_ttl_s)

    def check_size(self, size_bytes: int) -> None:
        """NOT_SUPPORTED for what S3 does not take by one PUT."""
        if size_bytes > _MAX_BYTES:
            raise not_supported()

    def url(self, method: Literal["GET", "PUT"], key: str, digest: str) -> SignedUrl:
        """A URL for one object."""
        expire_time = datetime.now(UTC) + self._ttl
        with store_errors(digest):
            url = obstore.sign(self._signer, method, key, self._ttl)
        return SignedUrl(url, expire_time)

    def sign(self, digest: str) -> SignedUpload:
        """A new upload and its URL."""
        upload_id = uuid.uuid4().hex
        return SignedUpload(upload_id, self.url("PUT", _incoming(digest, upload_id), digest))

    def finish(self, digest: str, size_bytes: int, upload_id: str, exists: bool) -> None:
        """See BlobStore.finish_signed_upload; exists says whether the blob is there already."""
        incoming = _incoming(digest, upload_id)
        if not exists:
            self._check_arrived(digest, size_bytes, incoming)
            self._verify_and_publish(digest, size_bytes, incoming)
        self._drop(digest, incoming)

    def _check_arrived(self, digest: str, size_bytes: int, incoming: str) -> None:
        """Before anything is copied."""
        with store_errors(digest):
            try:
                found_bytes = obstore.head(self._store, incoming)["size"]
            except FileNotFoundError:
                raise _nothing_put(digest) from None
        if found_bytes != size_bytes:
            self._drop(digest, incoming)
            raise other_bytes(digest, f"{found_bytes} bytes instead of {size_bytes}")

    def _verify_and_publish(self, digest: str, size_bytes: int, incoming: str) -> None:
        private = f"verifying/{check_digest(digest)}/{uuid.uuid4().hex}"
        try:
            with store_errors(digest):
                obstore.copy(self._streams, incoming, private)
                found = self._digest_of(private)
                if found != digest:
                    self._drop(digest, incoming)
                    raise other_bytes(digest, f"the digest {found}")
                obstore.copy(self._streams, private, blob_key(digest))
        finally:
            self._drop(digest, private)

    def _digest_of(self, key: str) -> str:
        hasher = hashlib.sha256()
        for chunk in obstore.get(self._streams, key).stream(min_chunk_size=CHUNK_BYTES):
            hasher.update(chunk)
        return "sha256:" + hasher.hexdigest()

    def _drop(self, digest: str, key: str) -> None:
        # What stays is no blob; it goes when uploads are expired.
        try:
            with store_errors(digest):
                obstore.delete(self._store, [key])
        except GraftError as error:
            get_logger().warning("an object was left", key=key, error=str(error))


def _incoming(digest: str, upload_id: str) -> str:
    if not _UPLOAD_ID.fullmatch(upload_id):
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"{upload_id[:80]!r} is not the id of an upload of {digest}",
            next_step="Send the upload_id that SignUpload gave.",
        )
    return f"incoming/{check_digest(digest)}/{upload_id}"


def _nothing_put(digest: str) -> GraftError:
    return GraftError(
        Reason.INVALID_REQUEST,
        f"Nothing was put to the signed URL of {digest}",
        next_step="Put the bytes to the URL from SignUpload first, then call FinishUpload.",
    )
