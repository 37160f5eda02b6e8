"""Bytes to and from signed URLs by HTTP, past the registry. These functions block: call them from a thread.

They say nothing about whose bytes these are; BlobClient asks for the URLs and checks the digests.
"""

from __future__ import annotations

import http.client
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from graft.digests import CHUNK_BYTES
from graft.errors import GraftError, Reason

_TIMEOUT_S = 60.0
_TOO_FEW = "the answer ended early"


def put_file(
    url: str, path: Path, size_bytes: int, sent: Callable[[int], None], stop: threading.Event
) -> None:
    """Puts a file's first size_bytes to url.

    Args:
        url: signed for PUT.
        path: the local file.
        size_bytes: its size.
        sent: called with the number of bytes sent so far.
        stop: set by another thread to end early.

    Raises:
        GraftError: UNAVAILABLE, STORAGE_FULL, CANCELLED.
    """
    headers = {"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"}
    with path.open("rb") as source, _http_errors(path.name):
        body = _body(source, size_bytes, sent, stop)
        request = urllib.request.Request(url, body, headers, method="PUT")
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            answer.read()


def _body(
    source: BinaryIO, size_bytes: int, sent: Callable[[int], None], stop: threading.Event
) -> Iterator[bytes]:
    at = 0
    while at < size_bytes:
        _check(stop)
        data = source.read(min(CHUNK_BYTES, size_bytes - at))
        if not data:
            raise GraftError(
                Reason.DIGEST_MISMATCH,
                f"{source.name} has become shorter than {size_bytes} bytes while it was sent",
                next_step="Compute its digest again, and upload it once nothing writes to it.",
            )
        yield data
        at += len(data)
        sent(at)


def get_rest(
    url: str,
    out: BinaryIO,
    size_bytes: int,
    got: Callable[[bytes], None],
    stop: threading.Event,
) -> None:
    """Appends to out, which ends where the last attempt broke off, the rest of what url answers.

    Args:
        url: signed for GET.
        out: positioned at its end.
        size_bytes: of the whole.
        got: called with every piece that was written.
        stop: set by another thread to end early.

    Raises:
        GraftError: UNAVAILABLE, CANCELLED.
    """
    at = out.tell()
    if at >= size_bytes:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={at}-{size_bytes - 1}"})
    name = str(out.name)
    with _http_errors(name), urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        if at and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            raise _failed(name, "the server gives no ranges")
        while at < size_bytes and (data := answer.read(min(CHUNK_BYTES, size_bytes - at))):
            _check(stop)
            out.write(data)
            got(data)
            at += len(data)
        if at < size_bytes:
            raise _failed(name, _TOO_FEW)


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise GraftError(
            Reason.CANCELLED,
            "The transfer was cancelled",
            next_step="Begin it again if it is still wanted.",
        )


@contextmanager
def _http_errors(name: str) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        with error:
            words = error.read(500).decode("utf-8", "replace")
        if error.code == http.HTTPStatus.INSUFFICIENT_STORAGE:
            raise GraftError(
                Reason.STORAGE_FULL,
                f"The object store has no room for {name}: {words}",
                next_step="Free space or raise its quota, then try again.",
            ) from None
        raise _failed(name, f"HTTP {error.code}: {words}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _failed(name, f"{type(error).__name__}: {error}") from error


def _failed(name: str, why: str) -> GraftError:
    return GraftError(
        Reason.UNAVAILABLE,
        f"The object store did not move {name}: {why}",
        next_step="Try again; what the registry's own service can do instead, it does by itself.",
    )
