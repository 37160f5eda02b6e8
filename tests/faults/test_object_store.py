"""Object stores that refuse, stall, fill up or hang up: nothing is lost, nothing is half visible."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from graft.blobs import BlobClient, describe_file
from graft.common.v1.common_pb2 import File
from graft.errors import GraftError, Reason, UnavailableError

from services.registry.blobs.s3 import S3BlobStore
from tests.support.blob_service import blob_service
from tests.support.objects import ObjectStore, s3_options
from tests.support.s3_proxy import Fault, S3Proxy, s3_proxy
from tests.support.waiting import eventually

CHUNK = 256 * 1024
DATA = os.urandom(3 * 1024 * 1024 + 5)
BLOBS, STAGED = "graft/blobs/sha256/", "graft/blobs/uploads/"


@pytest.fixture
def proxy(object_store: ObjectStore) -> Iterator[S3Proxy]:
    with s3_proxy(object_store.url) as running:
        yield running


class Bench:
    """A file, a bucket behind the proxy, and clients of a registry on it."""

    def __init__(self, folder: Path, backend: ObjectStore, proxy: S3Proxy) -> None:
        self.folder, self.backend, self.proxy = folder, backend, proxy
        self.bucket = backend.new_bucket()
        self.path = folder / "weights"
        self.path.write_bytes(DATA)
        self.file: File = describe_file(folder, self.path)
        self.target = folder / "fetched"

    def open_store(self, timeout_s: float = 20.0) -> S3BlobStore:
        """The store as one registry process has it."""
        options = s3_options(
            self.proxy.url,
            self.bucket,
            request_timeout_s=timeout_s,
            stall_timeout_s=timeout_s,
            max_retries=1,
        )
        return S3BlobStore(options, CHUNK)

    def keys(self, prefix: str) -> list[str]:
        """What really lies in the bucket."""
        return self.backend.keys(self.bucket, prefix)

    def damage(self) -> None:
        """Flips one byte of the stored blob."""
        [key] = self.keys(BLOBS)
        data = bytearray(self.backend.get(self.bucket, key))
        data[len(data) // 2] ^= 1
        self.backend.put(self.bucket, key, bytes(data))


@pytest.fixture
def bench(tmp_path: Path, object_store: ObjectStore, proxy: S3Proxy) -> Bench:
    return Bench(tmp_path, object_store, proxy)


@pytest.fixture
async def client(bench: Bench) -> AsyncIterator[BlobClient]:
    """Gives up at the first failure, and moves everything through the registry."""
    async with blob_service(bench.open_store()) as channel:
        yield BlobClient(channel, attempts=1, direct_bytes=2**40)


@pytest.fixture
async def impatient(bench: Bench) -> AsyncIterator[BlobClient]:
    """Its registry waits for the store no longer than it must for a test to end."""
    async with blob_service(bench.open_store(timeout_s=0.4)) as channel:
        yield BlobClient(channel, attempts=1, direct_bytes=2**40)


@pytest.fixture
async def direct(bench: Bench) -> AsyncIterator[BlobClient]:
    """Moves everything by signed URLs as long as that works."""
    async with blob_service(bench.open_store()) as channel:
        yield BlobClient(channel, attempts=4, direct_bytes=1)


async def then_it_works(bench: Bench, client: BlobClient) -> None:
    """Once nothing is wrong any more, the same upload succeeds and leaves the blob alone."""
    # What an impatient registry gave up may still be on its way: it must not arrive after the rest.
    await eventually(lambda: not bench.proxy.forwarding, "the end of what was given up")
    bench.proxy.heal()
    await client.upload(bench.path, bench.file)
    await client.fetch(bench.file, bench.target)
    assert bench.target.read_bytes() == DATA
    assert len(bench.keys("graft/")) == 1
    assert bench.backend.multipart_uploads(bench.bucket) == 0


REFUSALS = {
    "broken": Fault(status=500, code="InternalError"),
    "overloaded": Fault(status=503, code="SlowDown"),
    "forbidden": Fault(status=403, code="AccessDenied"),
    "hanging up": Fault(lose_request=True),
}


@pytest.mark.parametrize("operation", [STAGED, BLOBS])
@pytest.mark.parametrize("kind", REFUSALS)
async def test_a_store_that_refuses_an_upload_is_named_and_the_upload_goes_on_afterwards(
    kind: str, operation: str, bench: Bench, client: BlobClient
) -> None:
    bench.proxy.faults = [replace(REFUSALS[kind], method="PUT", path=operation)]
    with pytest.raises(UnavailableError, match=bench.file.digest) as raised:
        await client.upload(bench.path, bench.file)
    assert raised.value.reason is Reason.UNAVAILABLE
    assert "GRAFT_REGISTRY_S3_" in raised.value.next_step
    assert bench.keys(BLOBS) == []
    await then_it_works(bench, client)


@pytest.mark.parametrize("operation", [STAGED, BLOBS])
async def test_a_store_that_stalls_is_not_waited_for_and_the_upload_goes_on_afterwards(
    operation: str, bench: Bench, impatient: BlobClient, client: BlobClient
) -> None:
    bench.proxy.faults = [Fault(stall=True, method="PUT", path=operation)]
    with pytest.raises(UnavailableError, match=bench.file.digest):
        await impatient.upload(bench.path, bench.file)
    assert bench.keys(BLOBS) == []
    await then_it_works(bench, client)


@pytest.mark.parametrize(
    ("status", "code"),
    [(507, "XMinioStorageFull"), (403, "QuotaExceeded"), (400, "EntityTooLarge")],
)
@pytest.mark.parametrize("operation", [STAGED, BLOBS])
async def test_a_store_without_room_is_said_and_the_upload_goes_on_afterwards(
    status: int, code: str, operation: str, bench: Bench, client: BlobClient
) -> None:
    bench.proxy.faults = [Fault(status=status, code=code, method="PUT", path=operation)]
    with pytest.raises(UnavailableError, match=bench.file.digest) as raised:
        await client.upload(bench.path, bench.file)
    assert raised.value.reason is Reason.STORAGE_FULL
    assert code in raised.value.message
    assert bench.keys(BLOBS) == []
    await then_it_works(bench, client)


async def test_a_store_that_is_gone_is_said(bench: Bench, client: BlobClient) -> None:
    bench.proxy.refuse_connections()
    with pytest.raises(UnavailableError, match=bench.file.digest):
        await client.upload(bench.path, bench.file)
    with pytest.raises(UnavailableError, match=bench.file.digest):
        await client.fetch(bench.file, bench.target)
    bench.proxy.listen_again()
    await then_it_works(bench, client)


@pytest.mark.parametrize("kind", ["broken", "overloaded", "hanging up"])
async def test_a_fault_that_passes_is_not_noticed(
    kind: str, bench: Bench, client: BlobClient
) -> None:
    bench.proxy.faults = [
        replace(REFUSALS[kind], method=method, times=1) for method in ("PUT", "POST", "GET", "HEAD")
    ]
    await client.upload(bench.path, bench.file)
    await client.fetch(bench.file, bench.target)
    assert bench.target.read_bytes() == DATA
    assert all(fault.times == 0 for fault in bench.proxy.faults)


async def test_an_upload_goes_on_after_the_chunks_that_the_store_took(
    bench: Bench, client: BlobClient
) -> None:
    offset = f"{4 * CHUNK:016d}"
    bench.proxy.faults = [Fault(lose_request=True, method="PUT", path=offset)]
    with pytest.raises(UnavailableError):
        await client.upload(bench.path, bench.file)
    kept = bench.keys(STAGED)
    bench.proxy.heal()
    bench.proxy.requests.clear()
    sent: list[int] = []
    await client.upload(bench.path, bench.file, sent.append)
    again = bench.proxy.seen("PUT", STAGED)
    assert kept
    assert not {key.rpartition("/")[2].split("-")[0] for key in kept} & {
        path.rpartition("/")[2].split("-")[0] for path in again
    }
    assert sum(sent) < len(DATA)
    await then_it_works(bench, client)


async def test_an_upload_goes_on_through_another_registry(bench: Bench, client: BlobClient) -> None:
    bench.proxy.faults = [Fault(lose_request=True, method="PUT", path=f"{4 * CHUNK:016d}")]
    with pytest.raises(UnavailableError):
        await client.upload(bench.path, bench.file)
    bench.proxy.heal()
    async with blob_service(bench.open_store()) as channel:
        sent: list[int] = []
        await BlobClient(channel, attempts=1).upload(bench.path, bench.file, sent.append)
        assert sum(sent) < len(DATA)
    await then_it_works(bench, client)


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_an_answer_that_is_lost_makes_no_difference(
    method: str, bench: Bench, client: BlobClient
) -> None:
    bench.proxy.faults = [Fault(lose_answer=True, method=method, path=BLOBS, times=1)]
    await client.upload(bench.path, bench.file)
    await client.fetch(bench.file, bench.target)
    assert bench.target.read_bytes() == DATA


async def test_a_download_goes_on_after_its_connection_was_cut(
    bench: Bench, client: BlobClient
) -> None:
    await client.upload(bench.path, bench.file)
    bench.proxy.faults = [Fault(cut_after_bytes=2_000_000, method="GET", path=BLOBS, times=1)]
    await client.fetch(bench.file, bench.target)
    assert bench.target.read_bytes() == DATA


async def test_a_download_that_is_cut_again_and_again_shows_no_file_until_it_is_whole(
    bench: Bench, client: BlobClient
) -> None:
    await client.upload(bench.path, bench.file)
    bench.proxy.faults = [
        Fault(cut_after_bytes=1_500_000, method="GET", path=BLOBS, times=1),
        Fault(status=503, code="SlowDown", method="GET", path=BLOBS),
    ]
    with pytest.raises(UnavailableError, match=bench.file.digest):
        await client.fetch(bench.file, bench.target)
    assert not bench.target.exists()
    bench.proxy.heal()
    got: list[int] = []
    await client.fetch(bench.file, bench.target, got.append)
    assert bench.target.read_bytes() == DATA
    assert sum(got) < len(DATA)


async def test_a_download_that_stalls_ends_with_an_error(
    bench: Bench, impatient: BlobClient, client: BlobClient
) -> None:
    await client.upload(bench.path, bench.file)
    bench.proxy.faults = [Fault(stall=True, method="GET", path=BLOBS)]
    with pytest.raises(UnavailableError, match=bench.file.digest):
        await impatient.fetch(bench.file, bench.target)
    assert not bench.target.exists()
    await then_it_works(bench, client)


async def test_bytes_that_changed_in_the_store_never_become_a_file(
    bench: Bench, client: BlobClient, direct: BlobClient
) -> None:
    await client.upload(bench.path, bench.file)
    bench.damage()
    for how in (client, direct):
        with pytest.raises(GraftError, match=bench.file.digest) as raised:
            await how.fetch(bench.file, bench.target)
        assert raised.value.reason is Reason.DIGEST_MISMATCH
        assert [path.name for path in bench.folder.iterdir()] == ["weights"]


async def test_a_staged_chunk_that_changed_never_becomes_part_of_a_blob(
    bench: Bench, client: BlobClient
) -> None:
    bench.proxy.faults = [Fault(status=503, code="SlowDown", method="PUT", path=BLOBS)]
    bench.proxy.faults.append(Fault(status=503, code="SlowDown", method="POST", path=BLOBS))
    with pytest.raises(UnavailableError):
        await client.upload(bench.path, bench.file)
    first, *_ = bench.keys(STAGED)
    data = bench.backend.get(bench.bucket, first)
    bench.backend.put(bench.bucket, first, b"x" + data[1:])
    bench.proxy.heal()
    with pytest.raises(GraftError, match="nothing of them was kept") as raised:
        await client.upload(bench.path, bench.file)
    assert raised.value.reason is Reason.DIGEST_MISMATCH
    assert bench.keys(BLOBS) == []
    await then_it_works(bench, client)


async def test_large_bytes_pass_the_registry_by(bench: Bench, direct: BlobClient) -> None:
    sent: list[int] = []
    got: list[int] = []
    await direct.upload(bench.path, bench.file, sent.append)
    await direct.fetch(bench.file, bench.target, got.append)
    assert bench.target.read_bytes() == DATA
    assert sum(sent) == sum(got) == len(DATA)
    assert len(bench.keys("graft/")) == 1
    assert "X-Amz-Signature" in bench.proxy.seen("PUT", "incoming")[0]
    assert any("X-Amz-Signature" in path for path in bench.proxy.seen("GET", BLOBS))


@pytest.mark.parametrize(
    "fault",
    [Fault(status=403, code="AccessDenied"), Fault(lose_request=True), Fault(lose_answer=True)],
    ids=["forbidden", "hanging up", "answer lost"],
)
async def test_what_cannot_be_put_directly_goes_through_the_registry(
    fault: Fault, bench: Bench, direct: BlobClient
) -> None:
    bench.proxy.faults = [replace(fault, method="PUT", path="X-Amz-Signature")]
    sent: list[int] = []
    await direct.upload(bench.path, bench.file, sent.append)
    assert bench.proxy.seen("PUT", STAGED)
    assert sum(sent) == len(DATA)
    bench.proxy.heal()
    await direct.fetch(bench.file, bench.target)
    assert bench.target.read_bytes() == DATA


async def test_a_direct_download_goes_on_after_its_connection_was_cut(
    bench: Bench, direct: BlobClient
) -> None:
    await direct.upload(bench.path, bench.file)
    cut = Fault(cut_after_bytes=1_000_000, method="GET", path="X-Amz-Signature", times=1)
    bench.proxy.faults = [cut]
    got: list[int] = []
    await direct.fetch(bench.file, bench.target, got.append)
    assert bench.target.read_bytes() == DATA
    assert sum(got) == len(DATA)


async def test_other_bytes_put_to_a_signed_url_are_refused_and_dropped(
    bench: Bench, direct: BlobClient
) -> None:
    bench.path.write_bytes(b"x" + DATA[1:])
    with pytest.raises(GraftError, match="nothing of them was kept") as raised:
        await direct.upload(bench.path, bench.file)
    assert raised.value.reason is Reason.DIGEST_MISMATCH
    assert bench.keys("graft/") == []


async def test_a_check_of_put_bytes_that_fails_can_be_tried_again(
    bench: Bench, direct: BlobClient
) -> None:
    bench.proxy.faults = [Fault(status=500, code="InternalError", path="verifying", times=2)]
    await direct.upload(bench.path, bench.file)
    await direct.fetch(bench.file, bench.target)
    assert hashlib.sha256(bench.target.read_bytes()).digest() == hashlib.sha256(DATA).digest()
    assert bench.keys(BLOBS)
