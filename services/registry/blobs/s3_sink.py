"""An upload's bytes on their way into a bucket: staged as chunk objects, then written as one.

A chunk is uploads/{hex}/{offset}-{length}-{writer}. Another registry, or this one after a crash, goes on
behind the chain of chunks that is there; who writes at once with others never overwrites theirs.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import obstore
from graft.errors import GraftError

from services.common.logs import get_logger
from services.registry.blobs.base import CHUNK_BYTES, check_digest, damaged, other_bytes
from services.registry.blobs.s3_client import store_errors
from services.registry.blobs.shared import Sink

if TYPE_CHECKING:
    from hashlib import _Hash

    from obstore.store import S3Store

# S3 takes at most 10,000 parts, of 5 MiB at least.
_MAX_PARTS = 9_000
_MIN_PART_BYTES = 5 * CHUNK_BYTES
_CONCURRENT_PARTS = 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """A staged piece of an upload."""

    key: str
    offset: int
    size_bytes: int

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.offset + self.size_bytes


def blob_key(digest: str) -> str:
    """Key of a whole blob."""
    digits = check_digest(digest)
    return f"sha256/{digits[:2]}/{digits[2:]}"


def staged_chain(store: S3Store, digest: str) -> list[Chunk]:
    """The chunks that follow each other from the blob's first byte on."""
    begin: dict[int, Chunk] = {}
    for page in obstore.list(store, f"uploads/{check_digest(digest)}/", chunk_size=1000):
        for found in page:
            offset = int(found["path"].rpartition("/")[2].split("-")[0])
            chunk = Chunk(found["path"], offset, found["size"])
            begin[offset] = max(chunk, begin.get(offset, chunk), key=lambda one: one.size_bytes)
    chain: list[Chunk] = []
    at = 0
    while at in begin:
        chain.append(begin.pop(at))
        at = chain[-1].end
    return chain


class S3Sink(Sink):
    """Keeps one upload.

    Args:
        digest: of the whole.
        store: client for requests of one chunk.
        chunk_bytes: size of a staged chunk; so much is kept in memory.
    """

    def __init__(self, digest: str, store: S3Store, chunk_bytes: int) -> None:
        self._digest, self._store, self._chunk_bytes = digest, store, chunk_bytes
        self._staging = f"uploads/{check_digest(digest)}"
        self._writer = uuid.uuid4().hex
        self._chain: list[Chunk] = []
        # One object that grows, and is given away with a chunk: no copy is made to join pieces.
        self._buffer = bytearray()

    @property
    def _staged_bytes(self) -> int:
        return self._chain[-1].end if self._chain else 0

    def published(self) -> bool:
        with store_errors(self._digest):
            try:
                obstore.head(self._store, blob_key(self._digest))
            except FileNotFoundError:
                return False
        return True

    def replay(self, hasher: _Hash) -> int:
        self._buffer = bytearray()
        with store_errors(self._digest):
            self._chain = staged_chain(self._store, self._digest)
            for chunk in self._chain:
                hasher.update(obstore.get(self._store, chunk.key).bytes())
        return self._staged_bytes

    def append(self, data: bytes, at: int) -> None:
        self._buffer += data
        if len(self._buffer) < self._chunk_bytes:
            return
        try:
            self._stage()
        except GraftError:
            # None of data is kept; what was there before still is.
            self._buffer = self._buffer[: at - self._staged_bytes]
            raise

    def _stage(self) -> None:
        """Makes a chunk of the buffer; when that fails, all is as before."""
        offset, size_bytes = self._staged_bytes, len(self._buffer)
        key = f"{self._staging}/{offset:016d}-{size_bytes}-{self._writer}"
        with store_errors(self._digest):
            obstore.put(self._store, key, self._buffer, use_multipart=False)
        self._chain.append(Chunk(key, offset, size_bytes))
        self._buffer = bytearray()

    def publish(self, size_bytes: int) -> None:
        key = blob_key(self._digest)
        if not self._chain:
            with store_errors(self._digest):
                obstore.put(self._store, key, self._buffer, use_multipart=False)
        elif not self.published():
            self._write_whole(key, size_bytes)
        self._buffer = bytearray()
        self._chain.clear()
        self._remove_staging()

    def _write_whole(self, key: str, size_bytes: int) -> None:
        """Writes what is staged as one object, which appears only when all of it was checked."""
        part_bytes = max(_MIN_PART_BYTES, self._chunk_bytes, -(-size_bytes // _MAX_PARTS))
        with store_errors(self._digest):
            # A loop of this thread's own: obstore cannot get while it pulls from a plain iterator.
            asyncio.run(self._put_parts(key, part_bytes))
            found_bytes = obstore.head(self._store, key)["size"]
        if found_bytes != size_bytes:
            raise damaged(self._digest, f"have {found_bytes} bytes instead of {size_bytes}")

    async def _put_parts(self, key: str, part_bytes: int) -> None:
        await obstore.put_async(
            self._store,
            key,
            self._checked(),
            use_multipart=True,
            chunk_size=part_bytes,
            max_concurrency=_CONCURRENT_PARTS,
        )

    async def _checked(self) -> AsyncIterator[bytes | memoryview]:
        hasher = hashlib.sha256()
        for chunk in self._chain:
            with store_errors(self._digest):
                data = await (await obstore.get_async(self._store, chunk.key)).bytes_async()
            hasher.update(data)
            yield memoryview(data)
        hasher.update(self._buffer)
        # An error here makes the store forget all parts.
        found = "sha256:" + hasher.hexdigest()
        if found != self._digest:
            raise other_bytes(self._digest, f"the digest {found} in the object store")
        if self._buffer:
            yield memoryview(self._buffer)

    def _remove_staging(self) -> None:
        # The blob exists; what is left here costs room until uploads are expired, and nothing else.
        try:
            with store_errors(self._digest):
                for page in obstore.list(self._store, f"{self._staging}/", chunk_size=1000):
                    obstore.delete(self._store, [found["path"] for found in page])
        except GraftError as error:
            get_logger().warning("staged chunks were left", digest=self._digest, error=str(error))

    def discard(self) -> None:
        self._buffer = bytearray()
        used = [chunk.key for chunk in self._chain]
        self._chain.clear()
        if used:
            with store_errors(self._digest):
                obstore.delete(self._store, used)

    def close(self) -> int:
        if self._buffer:
            try:
                self._stage()
            except GraftError as error:
                get_logger().warning("a chunk was not kept", digest=self._digest, error=str(error))
                self._buffer = bytearray()
        return self._staged_bytes
