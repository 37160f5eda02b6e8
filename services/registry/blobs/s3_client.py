"""How the S3 store talks to its server: timeouts, bounded retries, and its errors as our own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from graft.errors import GraftError, Reason
from obstore.exceptions import BaseError
from obstore.store import S3Store

from services.registry.blobs.base import not_found

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

# What S3, MinIO, Ceph and others answer when there is no room, or none for so large an object.
_FULL = ("507 ", "StorageFull", "QuotaExceeded", "EntityTooLarge", "InsufficientStorage")
_S3_ERROR = re.compile("<Code>(?P<code>.*?)</Code>.*?<Message>(?P<message>.*?)</Message>", re.S)
_STREAM_TIMEOUT = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class S3Options:
    """Where the objects are, and how long to try. Credentials come from AWS_* in the environment.

    Attributes:
        bucket: must exist.
        prefix: put before every key.
        endpoint: URL of the server; "" for Amazon's.
        public_endpoint: URL of the same server as clients reach it, for signed URLs; "" for endpoint.
        region: "" to take it from the environment.
        allow_http: whether the endpoint may be without TLS.
        request_timeout_s: for a request that carries at most one chunk.
        stall_timeout_s: how long a longer transfer may stand still.
        max_retries: of one request.
        retry_timeout_s: no further try of a request begins after so long.
        signed_url_ttl_s: how long a signed URL works.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    public_endpoint: str = ""
    region: str = ""
    allow_http: bool = False
    request_timeout_s: float = 60.0
    stall_timeout_s: float = 30.0
    max_retries: int = 4
    retry_timeout_s: float = 60.0
    signed_url_ttl_s: float = 3600.0

    def connect(self, *, streaming: bool = False, public: bool = False) -> S3Store:
        """A client of the bucket.

        Args:
            streaming: for transfers and copies that may take hours as long as they move.
            public: as others reach it; only for signing.
        """
        config: S3Config = {}
        endpoint = self.public_endpoint if public and self.public_endpoint else self.endpoint
        if endpoint:
            config["endpoint"] = endpoint
        if self.region:
            config["region"] = self.region
        return S3Store(
            self.bucket,
            prefix=self.prefix or None,
            config=config,
            client_options=self._client(streaming),
            retry_config=self._retries(),
        )

    def _client(self, streaming: bool) -> ClientConfig:
        wait = timedelta(seconds=self.request_timeout_s)
        return {
            "allow_http": self.allow_http,
            "connect_timeout": min(wait, timedelta(seconds=10)),
            "timeout": _STREAM_TIMEOUT if streaming else wait,
            "read_timeout": timedelta(seconds=self.stall_timeout_s) if streaming else wait,
        }

    def _retries(self) -> RetryConfig:
        return {
            "max_retries": self.max_retries,
            "retry_timeout": timedelta(seconds=self.retry_timeout_s),
            "backoff": {"max_backoff": timedelta(seconds=5)},
        }


@contextmanager
def store_errors(digest: str, *, reading: bool = False) -> Iterator[None]:
    """Turns what the object store answers into our errors.

    Args:
        digest: the blob that is moved, or what else is done, for the message.
        reading: whether a missing object means that there is no such blob.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise (not_found(digest) if reading else _refused(digest, error)) from error
    except BaseError as error:
        raise _refused(digest, error) from error


def _cause(text: str) -> str:
    """What the server said, without the request's address and the client's own structures."""
    said = text.partition("\n\nDebug source")[0].rpartition(" - ")[2]
    found = _S3_ERROR.search(said)
    if found:
        said = f"{said.partition('<')[0]}{found['code']}: {found['message']}"
    return " ".join(said.split())[:500]


def _refused(digest: str, error: Exception) -> GraftError:
    words = _cause(str(error))
    if any(mark in words for mark in _FULL):
        return GraftError(
            Reason.STORAGE_FULL,
            f"The object store has no room for {digest}: {words}",
            next_step="Free space or raise its quota, then try again: it goes on where it stopped.",
            digest=digest,
        )
    return GraftError(
        Reason.UNAVAILABLE,
        f"The object store did not do its part for {digest}: {words}",
        next_step="Try again; if it stays so, check GRAFT_REGISTRY_S3_* and the credentials in AWS_*.",
        digest=digest,
    )
