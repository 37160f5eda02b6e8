"""A real S3 server for tests: moto's, over HTTP in a process of its own that ends with its parent.

`python -m tests.support.objects` serves, prints its URL and ends when its standard input does.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import obstore
import pytest
from obstore.store import S3Store

from services.registry.blobs.s3_client import S3Options
from tests.support.processes import ROOT, process_environment

# Anything: moto does not check them, but a request must be signed with something.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "tester"}
# Loopback is never reached through a proxy.
DIRECT = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


class ObjectStore:
    """A running S3 server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def new_bucket(self) -> str:
        """The name of an empty bucket."""
        bucket = f"test-{uuid.uuid4().hex}"
        self._send("PUT", bucket)
        return bucket

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys in a bucket."""
        answer = self._send("GET", f"{bucket}?list-type=2&max-keys=1000&prefix={prefix}")
        return [part.split("</Key>")[0] for part in answer.decode().split("<Key>")[1:]]

    def multipart_uploads(self, bucket: str) -> int:
        """How many multipart uploads were begun and neither completed nor aborted."""
        return self._send("GET", f"{bucket}?uploads").count(b"<UploadId>")

    def get(self, bucket: str, key: str) -> bytes:
        """An object."""
        return obstore.get(self._open(bucket), key).bytes().to_bytes()

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Writes an object behind everybody's back."""
        obstore.put(self._open(bucket), key, data)

    def remove(self, bucket: str, key: str) -> None:
        """Takes an object away behind everybody's back."""
        obstore.delete(self._open(bucket), key)

    def _open(self, bucket: str) -> S3Store:
        return s3_options(self.url, bucket, prefix="").connect()

    def _send(self, method: str, path: str) -> bytes:
        request = urllib.request.Request(f"{self.url}/{path}", method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            return bytes(answer.read())


def http_put(url: str, data: bytes) -> None:
    """Puts data to a URL, as any HTTP client does."""
    headers = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(url, data, headers, method="PUT")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(request, timeout=30).close()


def s3_options(url: str, bucket: str, **others: Any) -> S3Options:
    """Options for a server of these tests, impatient unless others say otherwise."""
    values: dict[str, Any] = {
        "prefix": "graft/blobs",
        "region": "us-east-1",
        "allow_http": True,
        "request_timeout_s": 20.0,
        "stall_timeout_s": 20.0,
        "max_retries": 2,
        "retry_timeout_s": 20.0,
    } | others
    return S3Options(bucket=bucket, endpoint=url, **values)


@contextmanager
def object_store_server() -> Iterator[ObjectStore]:
    """Starts the server; credentials for it are in this process's environment meanwhile."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.objects"],
        cwd=ROOT,
        env=process_environment() | CREDENTIALS | DIRECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        url = process.stdout.readline().strip()
        assert url, f"moto's server did not start: exit code {process.wait(60)}"
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (CREDENTIALS | DIRECT).items():
                patch.setenv(name, value)
            yield ObjectStore(url)
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(60)


def _serve() -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    _serve()
