"""What every blob store does, run against each of them."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from graft.digests import digest_bytes
from graft.errors import GraftError, Reason

from services.registry.blobs.base import CHUNK_BYTES, BlobStatus, BlobStore
from services.registry.blobs.disk import Disk
from services.registry.blobs.filesystem import FilesystemBlobStore
from services.registry.blobs.memory import MemoryBlobStore
from services.registry.blobs.s3 import S3BlobStore
from services.registry.blobs.s3_sink import blob_key
from tests.support.objects import ObjectStore, http_put, s3_options
from tests.support.processes import ROOT, process_environment

DATA = bytes(range(256)) * 4096 + b"end"
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()


async def put(store: BlobStore, data: bytes = DATA, digest: str = DIGEST) -> BlobStatus:
    """Uploads data in chunks of 100,000 bytes."""
    upload = await store.begin_upload(digest, len(data))
    assert upload is not None
    for begin in range(0, len(data), 100_000):
        await upload.append(begin, data[begin : begin + 100_000])
    await upload.finish()
    return await upload.close()


async def get(store: BlobStore, digest: str = DIGEST, offset: int = 0, limit: int = 0) -> bytes:
    """Reads a blob, and holds that no chunk is too large for a message."""
    chunks = [chunk async for chunk in store.read(digest, offset, limit)]
    assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)
    return b"".join(chunks)


async def get_after_resuming(store: BlobStore) -> bytes:
    """Ends an upload where it was left, and reads the blob."""
    kept = (await store.status(DIGEST)).committed_size_bytes
    upload = await store.begin_upload(DIGEST, len(DATA))
    assert upload is not None
    await upload.append(kept, DATA[kept:])
    await upload.finish()
    await upload.close()
    return await get(store)


@contextmanager
def holding_a_part(root: Path, data: bytes) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has written data to a part in a store's folder, and goes on with it."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from services.registry.blobs.disk import Disk\n"
        "from services.registry.blobs.parts import PartFiles\n"
        "_, handle = PartFiles(Path(sys.argv[1]), Disk()).take(sys.argv[2])\n"
        "os.write(handle, bytes.fromhex(sys.argv[3])); print('holds', flush=True)\n"
        "sys.stdin.read()"
    )
    arguments = [str(root / "uploads"), DIGEST.removeprefix("sha256:"), data.hex()]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=process_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"holds\n"
        yield process


class BlobStoreContract:
    """Subclasses supply the store."""

    async def test_what_was_written_is_read_back(self, store: BlobStore) -> None:
        assert await put(store) == BlobStatus(len(DATA), complete=True)
        assert await get(store) == DATA
        assert await store.size(DIGEST) == len(DATA)
        assert await store.total_bytes() == len(DATA)

    async def test_an_empty_blob_is_a_blob(self, store: BlobStore) -> None:
        digest = "sha256:" + hashlib.sha256(b"").hexdigest()
        await put(store, b"", digest)
        assert await get(store, digest) == b""
        assert await store.missing([digest]) == []

    async def test_a_range_is_read(self, store: BlobStore) -> None:
        await put(store)
        assert await get(store, offset=1000, limit=5) == DATA[1000:1005]
        assert await get(store, offset=len(DATA) - 3) == b"end"
        assert await get(store, offset=len(DATA)) == b""
        assert await get(store, offset=len(DATA) - 3, limit=10_000) == b"end"

    async def test_a_range_past_the_end_is_refused(self, store: BlobStore) -> None:
        await put(store)
        with pytest.raises(GraftError, match="cannot be read") as raised:
            await get(store, offset=len(DATA) + 1)
        assert raised.value.reason is Reason.INVALID_REQUEST

    async def test_an_upload_goes_on_where_it_was_left(self, store: BlobStore) -> None:
        upload = await store.begin_upload(DIGEST, len(DATA))
        assert upload is not None
        await upload.append(0, DATA[:70_000])
        assert await upload.close() == BlobStatus(70_000, complete=False)
        assert await store.status(DIGEST) == BlobStatus(70_000, complete=False)
        assert await store.missing([DIGEST]) == [DIGEST]
        again = await store.begin_upload(DIGEST, len(DATA))
        assert again is not None
        await again.append(70_000, DATA[70_000:])
        await again.finish()
        await again.close()
        assert await get(store) == DATA

    @pytest.mark.parametrize("offset", [0, 69_999, 70_001])
    async def test_a_wrong_offset_is_told_where_to_go_on(
        self, store: BlobStore, offset: int
    ) -> None:
        upload = await store.begin_upload(DIGEST, len(DATA))
        assert upload is not None
        await upload.append(0, DATA[:70_000])
        await upload.close()
        again = await store.begin_upload(DIGEST, len(DATA))
        assert again is not None
        with pytest.raises(GraftError, match="Go on at 70000") as raised:
            await again.append(offset, b"x")
        assert raised.value.reason is Reason.UPLOAD_OFFSET
        assert raised.value.metadata["committed_size_bytes"] == "70000"
        await again.close()

    async def test_other_bytes_than_the_digest_says_leave_nothing(self, store: BlobStore) -> None:
        with pytest.raises(GraftError, match="nothing of them was kept") as raised:
            await put(store, b"x" + DATA[1:])
        assert raised.value.reason is Reason.DIGEST_MISMATCH
        assert await store.status(DIGEST) == BlobStatus(0, complete=False)
        await put(store)
        assert await get(store) == DATA

    async def test_an_upload_cannot_be_finished_early_or_overrun(self, store: BlobStore) -> None:
        upload = await store.begin_upload(DIGEST, len(DATA))
        assert upload is not None
        await upload.append(0, DATA[:10])
        with pytest.raises(GraftError, match="finished at 10 of"):
            await upload.finish()
        with pytest.raises(GraftError, match="was said to have"):
            await upload.append(10, DATA)
        await upload.close()
        assert await store.missing([DIGEST]) == [DIGEST]

    async def test_what_exists_is_not_uploaded_again(self, store: BlobStore) -> None:
        await put(store)
        assert await store.begin_upload(DIGEST, len(DATA)) is None

    async def test_two_writers_of_one_digest_both_succeed(self, store: BlobStore) -> None:
        async def write() -> BlobStatus:
            upload = await store.begin_upload(DIGEST, len(DATA))
            if upload is None:
                return await store.status(DIGEST)
            for begin in range(0, len(DATA), 10_000):
                await upload.append(begin, DATA[begin : begin + 10_000])
                await asyncio.sleep(0)
            await upload.finish()
            return await upload.close()

        statuses = await asyncio.gather(*(write() for _ in range(4)))
        assert statuses == [BlobStatus(len(DATA), complete=True)] * 4
        assert await get(store) == DATA

    async def test_a_second_writer_goes_on_while_the_first_hangs(self, store: BlobStore) -> None:
        hanging = await store.begin_upload(DIGEST, len(DATA))
        assert hanging is not None
        await hanging.append(0, DATA[:50])
        second = await store.begin_upload(DIGEST, len(DATA))
        assert second is not None
        await second.append(50, DATA[50:])
        await second.finish()
        await second.close()
        assert await get(store) == DATA
        assert await hanging.close() == BlobStatus(len(DATA), complete=True)

    async def test_a_writer_that_goes_away_in_mid_chunk_spoils_nothing(
        self, store: BlobStore
    ) -> None:
        upload = await store.begin_upload(DIGEST, len(DATA))
        assert upload is not None
        task = asyncio.ensure_future(upload.append(0, DATA[:500_000]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        kept = (await upload.close()).committed_size_bytes
        again = await store.begin_upload(DIGEST, len(DATA))
        assert again is not None
        await again.append(kept, DATA[kept:])
        await again.finish()
        await again.close()
        assert await get(store) == DATA

    async def test_a_blob_that_is_not_there_is_named(self, store: BlobStore) -> None:
        for call in (store.size(DIGEST), get(store)):
            with pytest.raises(GraftError, match=DIGEST) as raised:
                await call
            assert raised.value.reason is Reason.BLOB_NOT_FOUND
        assert await store.status(DIGEST) == BlobStatus(0, complete=False)

    @pytest.mark.parametrize("digest", ["", "sha256:../../etc/passwd", "md5:00", DIGEST.upper()])
    async def test_what_is_no_digest_is_refused(self, store: BlobStore, digest: str) -> None:
        with pytest.raises(GraftError, match="is not a digest"):
            await store.status(digest)
        with pytest.raises(GraftError, match="is not a digest"):
            await store.begin_upload(digest, 1)

    async def test_a_deleted_blob_is_gone_and_can_come_again(self, store: BlobStore) -> None:
        await put(store)
        await store.delete(DIGEST)
        await store.delete(DIGEST)
        assert await store.missing([DIGEST]) == [DIGEST]
        assert await store.total_bytes() == 0
        with pytest.raises(GraftError, match="no blob"):
            await get(store)
        await put(store)
        assert await get(store) == DATA

    async def test_blobs_are_listed_page_by_page_in_the_order_of_their_digests(
        self, store: BlobStore
    ) -> None:
        sizes = {digest_bytes(b"%d" % number): len(b"%d" % number) for number in range(7, 14)}
        for number in range(7, 14):
            await put(store, b"%d" % number, digest_bytes(b"%d" % number))
        found, after = [], ""
        while page := await store.stored(after, limit=3):
            assert len(page) <= 3
            found += page
            after = page[-1].digest
        assert [(blob.digest, blob.size_bytes) for blob in found] == sorted(sizes.items())
        assert all(0 <= blob.age_s < 3600 for blob in found)

    async def test_an_upload_that_was_left_expires(self, store: BlobStore) -> None:
        upload = await store.begin_upload(DIGEST, len(DATA))
        assert upload is not None
        await upload.append(0, DATA[:70_000])
        await upload.close()
        assert await store.expire_uploads(3600) == 0
        assert (await store.status(DIGEST)).committed_size_bytes == 70_000
        assert await store.expire_uploads(0) == 1
        assert (await store.status(DIGEST)).committed_size_bytes == 0

    async def test_an_upload_that_goes_on_does_not_expire(self, store: BlobStore) -> None:
        upload = await store.begin_upload(DIGEST, len(DATA))
        assert upload is not None
        await upload.append(0, DATA[:70_000])
        assert await store.expire_uploads(0) == 0
        await upload.append(70_000, DATA[70_000:])
        await upload.finish()
        await upload.close()
        assert await get(store) == DATA


class FiniteStoreContract(BlobStoreContract):
    """For stores that know their room."""

    async def test_what_does_not_fit_is_refused_before_it_begins(self, small: BlobStore) -> None:
        with pytest.raises(GraftError, match=str(len(DATA))) as raised:
            await small.begin_upload(DIGEST, len(DATA))
        assert raised.value.reason is Reason.STORAGE_FULL
        assert await small.missing([DIGEST]) == [DIGEST]


class SmallDisk(Disk):
    """A disk with room for so many bytes, which may promise more than it holds."""

    def __init__(self, room_bytes: int, promised_bytes: int | None = None) -> None:
        self.room_bytes, self.promised_bytes = room_bytes, promised_bytes

    def free_bytes(self, folder: Path) -> int:
        return self.room_bytes if self.promised_bytes is None else self.promised_bytes

    def append(self, handle: int, data: bytes, at: int) -> None:
        if len(data) > self.room_bytes:
            super().append(handle, data[: self.room_bytes], at)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room_bytes -= len(data)
        super().append(handle, data, at)


class SlowDisk(Disk):
    """A disk whose writes wait until they are let on."""

    def __init__(self) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()

    def append(self, handle: int, data: bytes, at: int) -> None:
        self.began.set()
        assert self.go_on.wait(60)
        super().append(handle, data, at)


class TestFilesystemBlobStore(FiniteStoreContract):
    """Blobs as files."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> BlobStore:
        return FilesystemBlobStore(tmp_path)

    @pytest.fixture
    def small(self, tmp_path: Path) -> BlobStore:
        return FilesystemBlobStore(tmp_path, SmallDisk(1000))

    async def test_blobs_and_partial_uploads_outlive_the_process(self, tmp_path: Path) -> None:
        await put(FilesystemBlobStore(tmp_path))
        other = b"other bytes"
        digest = "sha256:" + hashlib.sha256(other).hexdigest()
        upload = await FilesystemBlobStore(tmp_path).begin_upload(digest, len(other))
        assert upload is not None
        await upload.append(0, other[:5])
        opened_again = FilesystemBlobStore(tmp_path)
        assert await get(opened_again) == DATA
        assert await opened_again.status(digest) == BlobStatus(5, complete=False)
        await upload.close()

    async def test_a_disk_that_fills_up_keeps_what_fitted_and_serves_on(
        self, tmp_path: Path
    ) -> None:
        disk = SmallDisk(70_000, promised_bytes=10**9)
        store = FilesystemBlobStore(tmp_path, disk)
        upload = await store.begin_upload(DIGEST, len(DATA))
        assert upload is not None
        await upload.append(0, DATA[:50_000])
        with pytest.raises(GraftError) as raised:
            await upload.append(50_000, DATA[50_000:100_000])
        assert raised.value.reason is Reason.STORAGE_FULL
        assert "needs 50000 more" in raised.value.message
        await upload.close()
        assert await store.status(DIGEST) == BlobStatus(50_000, complete=False)
        disk.room_bytes = 10**9
        again = await store.begin_upload(DIGEST, len(DATA))
        assert again is not None
        await again.append(50_000, DATA[50_000:])
        await again.finish()
        await again.close()
        assert await get(store) == DATA

    async def test_a_write_that_its_caller_left_is_waited_for(self, tmp_path: Path) -> None:
        disk = SlowDisk()
        store = FilesystemBlobStore(tmp_path, disk)
        upload = await store.begin_upload(DIGEST, len(DATA))
        assert upload is not None
        task = asyncio.create_task(upload.append(0, DATA[:500_000]))
        await asyncio.to_thread(disk.began.wait, 60)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        closing = asyncio.create_task(upload.close())
        done, _ = await asyncio.wait([closing], timeout=0.1)
        assert not done
        disk.go_on.set()
        assert await closing == BlobStatus(500_000, complete=False)

    async def test_nothing_but_whole_blobs_lies_among_the_blobs(self, tmp_path: Path) -> None:
        store = FilesystemBlobStore(tmp_path)
        await put(store)
        files = [path for path in (tmp_path / "sha256").rglob("*") if path.is_file()]
        digits = DIGEST.removeprefix("sha256:")
        assert files == [tmp_path / "sha256" / digits[:2] / digits[2:]]
        assert list((tmp_path / "uploads").iterdir()) == []

    async def test_two_registries_upload_the_same_bytes_at_once_into_one_folder(
        self, tmp_path: Path
    ) -> None:
        stores = [FilesystemBlobStore(tmp_path) for _ in range(3)]
        uploads = [await store.begin_upload(DIGEST, len(DATA)) for store in stores]
        for begin in range(0, len(DATA), 100_000):
            for upload in uploads:
                assert upload is not None
                await upload.append(begin, DATA[begin : begin + 100_000])
        for upload in uploads:
            assert upload is not None
            await upload.finish()
            assert await upload.close() == BlobStatus(len(DATA), complete=True)
        assert list((tmp_path / "uploads").iterdir()) == []
        for store in stores:
            assert await get(store) == DATA
            assert await store.total_bytes() == len(DATA)

    async def test_another_registrys_wrong_bytes_do_not_spoil_this_ones(
        self, tmp_path: Path
    ) -> None:
        right, wrong = FilesystemBlobStore(tmp_path), FilesystemBlobStore(tmp_path)
        good = await right.begin_upload(DIGEST, len(DATA))
        assert good is not None
        await good.append(0, DATA[:500_000])
        bad = await wrong.begin_upload(DIGEST, len(DATA))
        assert bad is not None
        await bad.append(0, b"x" * len(DATA))
        with pytest.raises(GraftError, match="nothing of them was kept"):
            await bad.finish()
        await bad.close()
        await good.append(500_000, DATA[500_000:])
        await good.finish()
        await good.close()
        assert await get(wrong) == DATA

    async def test_what_a_killed_registry_left_goes_on_in_another(self, tmp_path: Path) -> None:
        store = FilesystemBlobStore(tmp_path)
        with holding_a_part(tmp_path, DATA[:1000]) as other:
            beside = await store.begin_upload(DIGEST, len(DATA))
            assert beside is not None
            with pytest.raises(GraftError, match="Go on at 0"):
                await beside.append(1000, DATA[1000:])
            await beside.close()
            other.kill()
        after = await store.begin_upload(DIGEST, len(DATA))
        assert after is not None
        await after.append(1000, DATA[1000:])
        await after.finish()
        await after.close()
        assert await get(store) == DATA

    async def test_links_in_the_folder_are_not_followed(self, tmp_path: Path) -> None:
        root, outside = tmp_path / "store", tmp_path / "outside"
        store = FilesystemBlobStore(root)
        digits = DIGEST.removeprefix("sha256:")
        outside.mkdir()
        (outside / "file").write_bytes(b"mine")
        (root / "uploads" / f"{digits}.part").symlink_to(outside / "file")
        (root / "sha256" / digits[:2]).symlink_to(outside)
        with pytest.raises(GraftError, match="symbolic link"):
            await put(store)
        assert [path.name for path in outside.iterdir()] == ["file"]
        assert (outside / "file").read_bytes() == b"mine"
        (root / "sha256" / digits[:2]).unlink()
        assert await get_after_resuming(store) == DATA
        assert (outside / "file").read_bytes() == b"mine"

    async def test_a_store_without_http_says_that_it_signs_no_urls(self, store: BlobStore) -> None:
        for call in (
            store.sign_upload(DIGEST, 5),
            store.finish_signed_upload(DIGEST, 5, "0" * 32),
            store.sign_download(DIGEST),
        ):
            with pytest.raises(GraftError, match="no signed URLs") as raised:
                await call
            assert raised.value.reason is Reason.NOT_SUPPORTED

    @pytest.mark.parametrize("damage", ["flipped", "cut", "emptied"])
    async def test_a_whole_read_of_damaged_bytes_ends_in_an_error(
        self, damage: str, tmp_path: Path
    ) -> None:
        store = FilesystemBlobStore(tmp_path)
        await put(store)
        [path] = (tmp_path / "sha256").glob("*/*")
        changed = {"flipped": b"x" + DATA[1:], "cut": DATA[:-1], "emptied": b""}[damage]
        path.write_bytes(changed)
        with pytest.raises(GraftError, match="damaged") as raised:
            await get(store)
        assert raised.value.reason is Reason.DIGEST_MISMATCH


class TestMemoryBlobStore(FiniteStoreContract):
    """Blobs in memory."""

    @pytest.fixture
    def store(self) -> BlobStore:
        return MemoryBlobStore()

    @pytest.fixture
    def small(self) -> BlobStore:
        return MemoryBlobStore(capacity_bytes=1000)


class TestS3BlobStore(BlobStoreContract):
    """Blobs in a bucket, over HTTP."""

    @pytest.fixture
    def bucket(self, object_store: ObjectStore) -> str:
        return object_store.new_bucket()

    @pytest.fixture
    async def store(self, object_store: ObjectStore, bucket: str) -> AsyncIterator[BlobStore]:
        store = S3BlobStore(s3_options(object_store.url, bucket))
        yield store
        await store.close()

    async def test_a_large_upload_is_staged_and_becomes_one_object(
        self, object_store: ObjectStore, bucket: str
    ) -> None:
        store = S3BlobStore(s3_options(object_store.url, bucket), chunk_bytes=300_000)
        upload = await store.begin_upload(DIGEST, len(DATA))
        assert upload is not None
        for begin in range(0, len(DATA), 100_000):
            await upload.append(begin, DATA[begin : begin + 100_000])
        assert len(object_store.keys(bucket)) == len(DATA) // 300_000
        await upload.finish()
        await upload.close()
        assert object_store.keys(bucket) == [f"graft/blobs/{blob_key(DIGEST)}"]
        assert await get(store) == DATA
        await store.close()

    async def test_a_chunk_that_changes_while_it_is_staged_never_becomes_part_of_a_blob(
        self, object_store: ObjectStore, bucket: str
    ) -> None:
        store = S3BlobStore(s3_options(object_store.url, bucket), chunk_bytes=300_000)
        upload = await store.begin_upload(DIGEST, len(DATA))
        assert upload is not None
        await upload.append(0, DATA)
        [key] = object_store.keys(bucket)
        object_store.put(bucket, key, b"x" + DATA[1:])
        with pytest.raises(GraftError, match="in the object store") as raised:
            await upload.finish()
        assert raised.value.reason is Reason.DIGEST_MISMATCH
        assert await upload.close() == BlobStatus(0, complete=False)
        assert object_store.keys(bucket) == []
        assert object_store.multipart_uploads(bucket) == 0
        await put(store)
        assert await get(store) == DATA
        await store.close()

    async def test_a_small_upload_is_one_object_from_the_start(
        self, store: BlobStore, object_store: ObjectStore, bucket: str
    ) -> None:
        upload = await store.begin_upload(DIGEST, len(DATA))
        assert upload is not None
        await upload.append(0, DATA)
        assert object_store.keys(bucket) == []
        await upload.finish()
        await upload.close()
        assert object_store.keys(bucket) == [f"graft/blobs/{blob_key(DIGEST)}"]

    async def test_two_registries_upload_the_same_bytes_at_once_into_one_bucket(
        self, object_store: ObjectStore, bucket: str
    ) -> None:
        stores = [S3BlobStore(s3_options(object_store.url, bucket), 300_000) for _ in range(2)]
        uploads = [await store.begin_upload(DIGEST, len(DATA)) for store in stores]
        for begin in range(0, len(DATA), 100_000):
            for upload in uploads:
                assert upload is not None
                await upload.append(begin, DATA[begin : begin + 100_000])
        for upload in uploads:
            assert upload is not None
            await upload.finish()
            assert await upload.close() == BlobStatus(len(DATA), complete=True)
        assert object_store.keys(bucket) == [f"graft/blobs/{blob_key(DIGEST)}"]
        for store in stores:
            assert await get(store) == DATA
            await store.close()

    async def test_a_signed_url_takes_bytes_and_its_holder_cannot_change_the_blob(
        self, store: BlobStore, object_store: ObjectStore, bucket: str
    ) -> None:
        signed = await store.sign_upload(DIGEST, len(DATA))
        assert signed is not None
        with pytest.raises(GraftError, match="Nothing was put"):
            await store.finish_signed_upload(DIGEST, len(DATA), signed.upload_id)
        await asyncio.to_thread(http_put, signed.target.url, DATA)
        assert await store.missing([DIGEST]) == [DIGEST]
        await store.finish_signed_upload(DIGEST, len(DATA), signed.upload_id)
        await asyncio.to_thread(http_put, signed.target.url, b"other bytes")
        assert await get(store) == DATA
        await store.finish_signed_upload(DIGEST, len(DATA), signed.upload_id)
        assert await get(store) == DATA
        assert object_store.keys(bucket) == [f"graft/blobs/{blob_key(DIGEST)}"]
        assert await store.sign_upload(DIGEST, len(DATA)) is None

    @pytest.mark.parametrize("sent", [b"x" + DATA[1:], DATA[:-1], DATA + b"x"])
    async def test_other_bytes_at_a_signed_url_are_refused_and_dropped(
        self, sent: bytes, store: BlobStore, object_store: ObjectStore, bucket: str
    ) -> None:
        signed = await store.sign_upload(DIGEST, len(DATA))
        assert signed is not None
        await asyncio.to_thread(http_put, signed.target.url, sent)
        with pytest.raises(GraftError, match="nothing of them was kept") as raised:
            await store.finish_signed_upload(DIGEST, len(DATA), signed.upload_id)
        assert raised.value.reason is Reason.DIGEST_MISMATCH
        assert object_store.keys(bucket) == []

    async def test_an_upload_id_cannot_name_another_object(self, store: BlobStore) -> None:
        for upload_id in ("", "../../sha256", "0" * 31 + "/"):
            with pytest.raises(GraftError, match="is not the id"):
                await store.finish_signed_upload(DIGEST, len(DATA), upload_id)

    async def test_what_was_put_and_never_finished_expires(
        self, store: BlobStore, object_store: ObjectStore, bucket: str
    ) -> None:
        signed = await store.sign_upload(DIGEST, len(DATA))
        assert signed is not None
        await asyncio.to_thread(http_put, signed.target.url, DATA)
        assert await store.expire_uploads(3600) == 0
        assert await store.expire_uploads(0) == 1
        assert object_store.keys(bucket) == []

    async def test_more_than_one_put_can_carry_is_not_signed(self, store: BlobStore) -> None:
        with pytest.raises(GraftError) as raised:
            await store.sign_upload(DIGEST, 6 * 1024**3)
        assert raised.value.reason is Reason.NOT_SUPPORTED

    async def test_a_bucket_that_is_not_there_is_said(self, object_store: ObjectStore) -> None:
        store = S3BlobStore(s3_options(object_store.url, "no-such-bucket"))
        with pytest.raises(GraftError, match="NoSuchBucket") as raised:
            await store.total_bytes()
        assert raised.value.reason is Reason.UNAVAILABLE
        with pytest.raises(GraftError) as raised:
            await put(store)
        assert raised.value.reason is Reason.UNAVAILABLE
        await store.close()
