"""Blobs over real gRPC: resumed uploads, ranges, a full disk."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from graft.blobs import BlobClient, describe_file
from graft.channel import open_channel, rpc_errors
from graft.common.v1.common_pb2 import File
from graft.errors import GraftError, InvalidError, Reason, UnavailableError
from graft.registry.v1 import blob_service_pb2 as pb
from graft.registry.v1.blob_service_pb2_grpc import BlobServiceStub

from services.registry.blobs.disk import Disk
from services.registry.blobs.filesystem import FilesystemBlobStore
from services.registry.config import RegistrySettings
from services.registry.server import RegistryServer
from tests.support.objects import ObjectStore
from tests.support.registry import RegistryCalls, running_registry
from tests.support.waiting import eventually

DATA = os.urandom(1_500_000)
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()
CHUNK = 100_000


async def chunks(
    begin: int = 0, end: int = len(DATA), data: bytes = DATA, finish: bool = True
) -> AsyncIterator[pb.WriteRequest]:
    """The part of an upload from begin to end."""
    for at in range(begin, end, CHUNK):
        stop = min(at + CHUNK, end)
        yield pb.WriteRequest(
            digest=DIGEST if at == begin else "",
            size_bytes=len(data) if at == begin else 0,
            write_offset=at,
            data=data[at:stop],
            finish_write=finish and stop == end,
        )


class Calls:
    """BlobService with failures raised as GraftError."""

    def __init__(self, calls: RegistryCalls) -> None:
        self._stub = BlobServiceStub(calls.channel)

    async def write(self, messages: AsyncIterator[pb.WriteRequest]) -> pb.WriteResponse:
        with rpc_errors("the registry"):
            return await self._stub.Write(messages)

    async def status(self) -> tuple[int, bool]:
        answer = await self._stub.QueryWriteStatus(pb.QueryWriteStatusRequest(digest=DIGEST))
        return answer.committed_size_bytes, answer.complete

    async def read(self, offset: int = 0, limit: int = 0) -> bytes:
        request = pb.ReadRequest(digest=DIGEST, read_offset=offset, read_limit=limit)
        with rpc_errors("the registry"):
            return b"".join([answer.data async for answer in self._stub.Read(request)])


@pytest.fixture
def service(calls: RegistryCalls) -> Calls:
    """BlobService."""
    return Calls(calls)


async def test_an_upload_is_read_back_whole_and_by_range(service: Calls) -> None:
    answer = await service.write(chunks())
    assert (answer.committed_size_bytes, answer.complete) == (len(DATA), True)
    assert await service.read() == DATA
    assert await service.read(1_048_570, 12) == DATA[1_048_570:1_048_582]


async def test_an_upload_goes_on_after_its_stream_ended(service: Calls) -> None:
    answer = await service.write(chunks(end=700_000, finish=False))
    assert (answer.committed_size_bytes, answer.complete) == (700_000, False)
    with pytest.raises(GraftError, match="no blob"):
        await service.read()
    assert (await service.write(chunks(begin=700_000))).complete
    assert await service.read() == DATA


async def test_an_upload_goes_on_after_its_client_vanished(
    registry: RegistryServer, service: Calls, tmp_path: Path
) -> None:
    registry_folder = tmp_path / "registry"
    arrived = asyncio.Event()

    async def then_hang() -> AsyncIterator[pb.WriteRequest]:
        async for chunk in chunks(end=300_000, finish=False):
            yield chunk
        await arrived.wait()

    channel = open_channel(registry.address)
    call = BlobServiceStub(channel).Write(then_hang())
    part = registry_folder / "blobs/uploads" / (DIGEST.removeprefix("sha256:") + ".part")
    await eventually(lambda: part.exists() and part.stat().st_size == 300_000)
    call.cancel()
    await channel.close(None)
    kept, complete = await service.status()
    assert (kept, complete) == (300_000, False)
    async with asyncio.timeout(60):
        while True:
            try:
                answer = await service.write(chunks(begin=kept))
                break
            except InvalidError:
                await asyncio.sleep(0.01)
    assert answer.complete
    assert await service.read() == DATA


async def test_two_clients_upload_the_same_bytes_at_once(
    registry: RegistryServer, tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(DATA)
    file = describe_file(tmp_path, path)

    async def upload() -> None:
        async with open_channel(registry.address) as channel:
            await BlobClient(channel).upload(path, file)

    await asyncio.gather(*(upload() for _ in range(6)))
    async with open_channel(registry.address) as channel:
        await BlobClient(channel).fetch(file, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == DATA


async def test_other_bytes_than_announced_are_not_kept(service: Calls) -> None:
    with pytest.raises(GraftError, match="nothing of them was kept") as raised:
        await service.write(chunks(data=b"x" + DATA[1:]))
    assert raised.value.reason is Reason.DIGEST_MISMATCH
    assert await service.status() == (0, False)


async def test_a_chunk_in_the_wrong_place_is_told_the_right_one(service: Calls) -> None:
    await service.write(chunks(end=200_000, finish=False))
    with pytest.raises(GraftError) as raised:
        await service.write(chunks(begin=300_000))
    assert raised.value.reason is Reason.UPLOAD_OFFSET
    assert raised.value.metadata["committed_size_bytes"] == "200000"
    assert await service.status() == (200_000, False)


async def test_a_chunk_or_a_blob_that_is_too_large_is_refused(service: Calls) -> None:
    async def one(**fields: object) -> AsyncIterator[pb.WriteRequest]:
        yield pb.WriteRequest(digest=DIGEST, **fields)  # type: ignore[arg-type]

    with pytest.raises(InvalidError, match="A chunk of"):
        await service.write(one(size_bytes=len(DATA), data=DATA))
    with pytest.raises(GraftError) as raised:
        await service.write(one(size_bytes=2**50))
    assert raised.value.reason is Reason.TOO_LARGE


class LateFullDisk(Disk):
    """Says that it is full at one operation only, as a disk that allocates late does."""

    def __init__(self, at: str) -> None:
        self.at = at

    def open(self, path: Path) -> int:
        self._refuse("open")
        return super().open(path)

    def sync(self, handle: int) -> None:
        self._refuse("sync")
        super().sync(handle)

    def _refuse(self, operation: str) -> None:
        if self.at == operation:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")


@pytest.mark.parametrize("operation", ["open", "sync"])
async def test_a_disk_that_turns_out_full_late_is_said_and_the_upload_goes_on_afterwards(
    operation: str, tmp_path: Path
) -> None:
    disk = LateFullDisk(operation)
    store = FilesystemBlobStore(tmp_path / "blobs", disk)
    server = RegistryServer(RegistrySettings(data_dir=tmp_path), blobs=store)
    await server.start()
    try:
        async with open_channel(server.address) as channel:
            service = Calls(RegistryCalls(channel))
            with pytest.raises(UnavailableError) as raised:
                await service.write(chunks())
            assert raised.value.reason is Reason.STORAGE_FULL
            disk.at = "never"
            source = tmp_path / "source"
            source.write_bytes(DATA)
            await BlobClient(channel).upload(source, describe_file(tmp_path, source))
            assert await service.read() == DATA
    finally:
        await server.stop()


class FullDisk(Disk):
    """Is full as soon as it is told so, though it promised room."""

    full = False

    def append(self, handle: int, data: bytes, at: int) -> None:
        if self.full:
            super().append(handle, data[:10], at)
            raise OSError(errno.ENOSPC, "No space left on device")
        super().append(handle, data, at)


async def test_a_full_disk_refuses_the_upload_and_nothing_else(tmp_path: Path) -> None:
    disk = FullDisk()
    store = FilesystemBlobStore(tmp_path / "blobs", disk)
    server = RegistryServer(RegistrySettings(data_dir=tmp_path), blobs=store)
    await server.start()
    try:
        async with open_channel(server.address) as channel:
            service = Calls(RegistryCalls(channel))
            await service.write(chunks(end=500_000, finish=False))
            disk.full = True
            with pytest.raises(UnavailableError, match="bytes free") as raised:
                await service.write(chunks(begin=500_000))
            assert raised.value.reason is Reason.STORAGE_FULL
            assert raised.value.metadata["needed_bytes"] == str(CHUNK)
            assert await service.status() == (500_000, False)
            disk.full = False
            assert (await service.write(chunks(begin=500_000))).complete
            assert await service.read() == DATA
    finally:
        await server.stop()


async def test_a_stored_file_that_was_damaged_never_arrives(
    registry: RegistryServer, service: Calls, tmp_path: Path
) -> None:
    await service.write(chunks())
    [path] = (tmp_path / "registry/blobs/sha256").glob("*/*")
    path.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    file, target = File(path="weights", digest=DIGEST, size_bytes=len(DATA)), tmp_path / "fetched"
    # Also when a first attempt had fetched a part of it.
    for kept in (b"", DATA[:300_000], b"stale"):
        (tmp_path / "fetched.part").write_bytes(kept)
        async with open_channel(registry.address) as channel:
            with pytest.raises(GraftError, match="damaged") as raised:
                await BlobClient(channel).fetch(file, target)
        assert raised.value.reason is Reason.DIGEST_MISMATCH
        assert list(tmp_path.glob("fetched*")) == []


async def test_a_partial_file_of_other_bytes_is_fetched_anew(
    registry: RegistryServer, service: Calls, tmp_path: Path
) -> None:
    await service.write(chunks())
    file, target = File(path="weights", digest=DIGEST, size_bytes=len(DATA)), tmp_path / "fetched"
    (tmp_path / "fetched.part").write_bytes(b"of another file")
    async with open_channel(registry.address) as channel:
        await BlobClient(channel).fetch(file, target)
    assert target.read_bytes() == DATA


async def test_an_upload_whose_place_was_told_wrongly_goes_on_at_the_right_one(
    registry: RegistryServer, service: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    await service.write(chunks(end=700_000, finish=False))

    async def told_by_another_registry(*_: object) -> int:
        return 500_000

    async with open_channel(registry.address) as channel:
        client = BlobClient(channel)
        monkeypatch.setattr(client, "_kept", told_by_another_registry)
        await client.upload(source, describe_file(tmp_path, source))
    assert await service.read() == DATA


async def test_a_registry_without_signed_urls_moves_large_files_itself(
    registry: RegistryServer, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "fetched"
    source.write_bytes(DATA)
    async with open_channel(registry.address) as channel:
        with pytest.raises(GraftError, match="no signed URLs") as raised, rpc_errors("it"):
            await BlobServiceStub(channel).SignDownload(pb.SignDownloadRequest(digest=DIGEST))
        assert raised.value.reason is Reason.NOT_SUPPORTED
        client = BlobClient(channel, direct_bytes=1)
        await client.upload(source, describe_file(tmp_path, source))
        await client.fetch(describe_file(tmp_path, source), target)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("direct_bytes", [1, 2**40], ids=["signed URLs", "through the service"])
async def test_a_registry_on_a_bucket_stores_and_gives_files(
    direct_bytes: int, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket = object_store.new_bucket()
    settings: dict[str, object] = {
        "s3_bucket": bucket,
        "s3_endpoint": object_store.url,
        "s3_region": "us-east-1",
        "s3_allow_http": True,
    }
    source, target = tmp_path / "source", tmp_path / "fetched"
    source.write_bytes(DATA)
    file = describe_file(tmp_path, source)
    async with (
        running_registry(tmp_path / "registry", **settings) as server,
        open_channel(server.address) as channel,
    ):
        client = BlobClient(channel, direct_bytes=direct_bytes)
        await client.upload(source, file)
        assert await client.missing([file.digest]) == set()
        await client.fetch(file, target)
    assert target.read_bytes() == DATA
    assert len(object_store.keys(bucket)) == 1
    assert not (tmp_path / "registry/blobs").exists()
