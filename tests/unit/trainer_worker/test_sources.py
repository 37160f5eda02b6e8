"""Data sets from every kind of place, with the real clients against real or stand-in servers on this machine."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from graft.blobs import describe_file
from graft.errors import GraftError, Reason
from graft.trainer.v1 import job_spec_pb2 as pb
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import LocalEntryNotFoundError
from obstore.store import S3Store

from services.trainer.run.background import BackgroundLoop
from services.trainer.sources.base import Fetched, Source
from services.trainer.sources.blob import BlobSource
from services.trainer.sources.hub import HubSource, hub_place
from services.trainer.sources.local import LocalSource
from services.trainer.sources.objects import ObjectSource
from services.trainer.spec import DatasetSource
from services.trainer.spec.dataset import parse_dataset
from tests.support.hub import Hub, Repository, running_hub
from tests.support.objects import ObjectStore
from tests.support.registry import registry_calls, running_registry
from tests.support.s3_proxy import Fault, S3Proxy

ROWS = b'{"text": "one"}\n{"text": "two"}\n'
OTHER = b'{"text": "other"}\n'
SECRET = "hf_secret"
# Nobody listens there.
NOBODY = "127.0.0.1:1"


def dataset(path: str = "", **fields: str) -> DatasetSource:
    """The set of a spec with this path."""
    (source,) = parse_dataset(pb.DatasetSpec(path=path, **fields)).sources  # type: ignore[arg-type]  # Only texts.
    return source


def quiet(line: str) -> None:
    """Takes a line for people."""


class Place(ABC):
    """A place of one kind, with what a test puts there."""

    holds_folders = True

    @abstractmethod
    async def put(self, name: str, files: dict[str, bytes]) -> None:
        """Puts files there, below a name; again: instead of those that were there."""

    @abstractmethod
    def named(self, name: str, path: str = "") -> DatasetSource:
        """What a spec says of it."""

    @abstractmethod
    def source(self) -> Source:
        """What fetches from it."""

    @abstractmethod
    def away(self) -> Source | None:
        """What fetches from it while nobody answers; None where that cannot be."""


class LocalPlace(Place):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, name: str, files: dict[str, bytes]) -> None:
        for path, data in files.items():
            target = self._folder / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)

    def named(self, name: str, path: str = "") -> DatasetSource:
        return dataset(str(self._folder / name / path))

    def source(self) -> Source:
        return LocalSource()

    def away(self) -> None:
        return None


class HubPlaceholder(Place):
    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def put(self, name: str, files: dict[str, bytes]) -> None:
        self._hub.repositories[f"datasets/org/{name}"] = Repository()
        self._hub.repositories[f"datasets/org/{name}"].commit(files)

    def named(self, name: str, path: str = "") -> DatasetSource:
        return dataset(f"hf://org/{name}" + (f"/{path}" if path else ""))

    def source(self) -> Source:
        return HubSource(quiet, self._hub.address)

    def away(self) -> Source:
        return HubSource(quiet, f"http://{NOBODY}")


class ObjectPlace(Place):
    def __init__(self, store: ObjectStore) -> None:
        self._store, self._bucket = store, store.new_bucket()

    async def put(self, name: str, files: dict[str, bytes]) -> None:
        for path, data in files.items():
            self._store.put(self._bucket, f"{name}/{path}", data)

    def named(self, name: str, path: str = "") -> DatasetSource:
        return dataset(f"s3://{self._bucket}/{name}" + (f"/{path}" if path else ""))

    def source(self) -> Source:
        return ObjectSource(quiet)

    def away(self) -> Source:
        return ObjectSource(quiet, impatient(f"http://{NOBODY}"))


class BlobPlace(Place):
    holds_folders = False

    def __init__(self, folder: Path, address: str, upload: Callable[[Path], object]) -> None:
        self._folder, self._address = folder, address
        self._upload = upload
        self._loop = BackgroundLoop()
        self._sets: dict[str, dict[str, str]] = {}

    async def put(self, name: str, files: dict[str, bytes]) -> None:
        for path, data in files.items():
            file = self._folder / path
            file.write_bytes(data)
            described = describe_file(self._folder, file)
            await self._upload(file)  # type: ignore[misc]  # A coroutine.
            self._sets[name] = {"blob_digest": described.digest, "blob_name": path}

    def named(self, name: str, path: str = "") -> DatasetSource:
        missing = {"blob_digest": "sha256:" + 64 * "0", "blob_name": "none.jsonl"}
        return dataset(**self._sets.get(name, missing))

    def source(self) -> Source:
        return BlobSource(self._address, "tester", self._loop.run)

    def away(self) -> Source:
        return BlobSource(NOBODY, "tester", self._loop.run, attempts=1)

    def close(self) -> None:
        self._loop.close()


def impatient(url: str) -> Callable[[str], S3Store]:
    """Clients that give up at once."""

    def connect(bucket: str) -> S3Store:
        return S3Store(
            bucket,
            config={"endpoint": url},
            client_options={"allow_http": True},
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
        )

    return connect


@pytest.fixture
def s3(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """A server that the environment names, as a worker's does."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store.url)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    return object_store


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of other tests in this process have switched the Hub off."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", SECRET)


@pytest.fixture(params=["local", "hub", "objects", "blob"])
async def place(
    request: pytest.FixtureRequest, tmp_path: Path, online: None
) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        if request.param == "local":
            yield LocalPlace(tmp_path / "here")
        elif request.param == "hub":
            yield HubPlaceholder(stack.enter_context(running_hub()))
        elif request.param == "objects":
            yield ObjectPlace(request.getfixturevalue("s3"))
        else:
            server = await stack.enter_async_context(running_registry(tmp_path / "registry"))
            calls = await stack.enter_async_context(registry_calls(server.address))

            async def upload(path: Path) -> None:
                await calls.blobs.upload(path, describe_file(path.parent, path))

            (tmp_path / "uploads").mkdir()
            blobs = BlobPlace(tmp_path / "uploads", server.address, upload)
            stack.callback(blobs.close)
            yield blobs


async def fetch(source: Source, named: DatasetSource, folder: Path) -> Fetched:
    return await asyncio.to_thread(source.fetch, named, folder)


async def refused(source: Source, named: DatasetSource, folder: Path) -> GraftError:
    with pytest.raises(GraftError) as caught:
        await fetch(source, named, folder)
    assert caught.value.next_step
    assert SECRET not in str(caught.value)
    return caught.value


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


class TestEveryPlace:
    async def test_a_file_arrives_with_its_bytes_and_its_name(
        self, place: Place, tmp_path: Path
    ) -> None:
        await place.put("set", {"rows.jsonl": ROWS})
        named = place.named("set", "rows.jsonl")
        assert place.source().takes(named)
        fetched = await fetch(place.source(), named, tmp_path / "work")
        assert (fetched.path.name, fetched.path.read_bytes()) == ("rows.jsonl", ROWS)

    async def test_a_folder_arrives_with_its_data_files(self, place: Place, tmp_path: Path) -> None:
        if not place.holds_folders:
            pytest.skip("a blob is one file")
        await place.put("set", {"b/rows.csv": b"text\nx\n", "a.jsonl": ROWS})
        fetched = await fetch(place.source(), place.named("set"), tmp_path / "work")
        assert files_of(fetched.path) == {"b/rows.csv": b"text\nx\n", "a.jsonl": ROWS}

    async def test_the_next_attempt_trains_on_the_same_bytes(
        self, place: Place, tmp_path: Path
    ) -> None:
        if isinstance(place, LocalPlace):
            pytest.skip("a file on this machine is read where it is")
        await place.put("set", {"rows.jsonl": ROWS})
        named = place.named("set", "rows.jsonl")
        first = await fetch(place.source(), named, tmp_path / "work")
        await place.put("set", {"rows.jsonl": OTHER})
        again = await fetch(place.source(), named, tmp_path / "work")
        assert again == first
        assert again.path.read_bytes() == ROWS
        away = place.away()
        assert away is not None
        assert await fetch(away, named, tmp_path / "work") == first

    async def test_another_set_in_the_same_folder_is_fetched_anew(
        self, place: Place, tmp_path: Path
    ) -> None:
        await place.put("set", {"rows.jsonl": ROWS})
        await place.put("next", {"rows.jsonl": OTHER})
        for name, data in (("set", ROWS), ("next", OTHER)):
            named = place.named(name, "rows.jsonl")
            fetched = await fetch(place.source(), named, tmp_path / "work")
            assert fetched.path.read_bytes() == data

    async def test_what_is_not_there_is_bad_data(self, place: Place, tmp_path: Path) -> None:
        named = place.named("nothing", "rows.jsonl")
        if isinstance(place, LocalPlace):
            assert not place.source().takes(named)
            return
        error = await refused(place.source(), named, tmp_path / "work")
        assert error.reason is Reason.BAD_DATA

    async def test_a_place_that_does_not_answer_is_unavailable_and_leaves_nothing_half(
        self, place: Place, tmp_path: Path
    ) -> None:
        away = place.away()
        if away is None:
            pytest.skip("this machine is always there")
        await place.put("set", {"rows.jsonl": ROWS})
        named = place.named("set", "rows.jsonl")
        error = await refused(away, named, tmp_path / "work")
        assert error.reason is Reason.UNAVAILABLE
        assert "rows.jsonl" not in {Path(path).name for path in files_of(tmp_path / "work")}
        fetched = await fetch(place.source(), named, tmp_path / "work")
        assert fetched.path.read_bytes() == ROWS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://org/set", ("org/set", "", "")),
        ("hf://datasets/org/set", ("org/set", "", "")),
        ("hf://org/set@v1.0/data/a.jsonl", ("org/set", "v1.0", "data/a.jsonl")),
        (
            "hf://org/set@refs/convert/parquet/default",
            ("org/set", "refs/convert/parquet", "default"),
        ),
        ("org/set", ("org/set", "", "")),
        ("org/set.jsonl", None),
        ("/org/set", None),
        ("hf://set", None),
    ],
)
def test_a_path_says_what_of_the_hub_is_meant(
    text: str, expected: tuple[str, str, str] | None
) -> None:
    place = hub_place(text)
    assert (None if place is None else dataclasses.astuple(place)) == expected


def test_a_name_with_a_slash_is_a_folder_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/set").mkdir(parents=True)
    assert LocalSource().takes(dataset("org/set"))
    assert not HubSource(quiet).takes(dataset("org/set"))


class TestHub:
    @pytest.fixture(autouse=True)
    def _hub(self, online: None) -> Iterator[None]:
        with running_hub() as hub:
            self.hub = hub
            yield

    def put(
        self, files: dict[str, bytes], *, private: bool = False, gated: bool = False
    ) -> Repository:
        self.hub.repositories["datasets/org/set"] = Repository(private, gated)
        self.hub.repositories["datasets/org/set"].commit(files)
        return self.hub.repositories["datasets/org/set"]

    async def fetch(self, path: str, folder: Path) -> Fetched:
        return await fetch(HubSource(quiet, self.hub.address), dataset(path), folder)

    async def refused(self, path: str, folder: Path) -> GraftError:
        return await refused(HubSource(quiet, self.hub.address), dataset(path), folder)

    async def test_the_origin_is_the_commit_that_was_found(self, tmp_path: Path) -> None:
        repository = self.put({"data/rows.jsonl": ROWS, "README.md": b"# Set"})
        old = repository.branches["main"]
        new = repository.commit({"data/rows.jsonl": OTHER})
        fetched = await self.fetch("org/set", tmp_path / "a")
        assert fetched.origin == f"hf://org/set@{new}"
        assert files_of(fetched.path) == {"data/rows.jsonl": OTHER}
        pinned = await self.fetch(f"hf://org/set@{old}/data/rows.jsonl", tmp_path / "b")
        assert pinned.origin == f"hf://org/set@{old}/data/rows.jsonl"
        assert pinned.path.read_bytes() == ROWS

    async def test_of_splits_the_train_split_is_fetched_and_others_by_name(
        self, tmp_path: Path
    ) -> None:
        self.put({"data/train-00000-of-00001.jsonl": ROWS, "data/test-00000-of-00001.jsonl": OTHER})
        train = await self.fetch("hf://org/set", tmp_path / "a")
        assert list(files_of(train.path)) == ["data/train-00000-of-00001.jsonl"]
        test = await self.fetch("hf://org/set/data/test-*", tmp_path / "b")
        assert files_of(test.path) == {"test-00000-of-00001.jsonl": OTHER}

    async def test_damaged_bytes_are_not_kept(self, tmp_path: Path) -> None:
        self.put({"rows.parquet": ROWS})
        self.hub.corrupt.add(sha256(ROWS).hexdigest())
        error = await self.refused("hf://org/set", tmp_path / "work")
        assert error.reason is Reason.UNAVAILABLE
        assert "other bytes than the Hub lists" in error.message
        self.hub.corrupt.clear()
        fetched = await self.fetch("hf://org/set", tmp_path / "work")
        assert (fetched.path / "rows.parquet").read_bytes() == ROWS

    async def test_a_hub_that_goes_away_in_the_middle_is_unavailable(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object, **__: object) -> str:
            raise LocalEntryNotFoundError("Check your connection")

        self.put({"rows.jsonl": ROWS})
        monkeypatch.setattr(HfApi, "hf_hub_download", broken)
        assert (await self.refused("org/set", tmp_path / "a")).reason is Reason.UNAVAILABLE
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        error = await self.refused("org/set", tmp_path / "a")
        assert error.reason is Reason.BAD_DATA
        assert "org/set (no file or folder here, so looked for on the Hub): " in error.message
        assert "HF_HUB_OFFLINE" in error.message

    async def test_a_private_or_gated_set_says_how_to_be_let_in(self, tmp_path: Path) -> None:
        for private in (True, False):
            self.put({"rows.jsonl": ROWS}, private=private, gated=not private)
            error = await self.refused("hf://org/set", tmp_path / f"{private}")
            assert error.reason is Reason.BAD_DATA
            assert "HF_TOKEN in the trainer's environment" in error.next_step

    async def test_a_repository_without_data_says_what_it_has(self, tmp_path: Path) -> None:
        self.put({"README.md": b"# Set"})
        error = await self.refused("hf://org/set", tmp_path / "work")
        assert "there is no data file (there is README.md)" in error.message

    async def test_files_that_would_leave_the_folder_are_not_fetched(self, tmp_path: Path) -> None:
        self.put({"../../out.jsonl": ROWS, "rows.jsonl": ROWS})
        fetched = await self.fetch("hf://org/set", tmp_path / "work")
        assert list(files_of(fetched.path)) == ["rows.jsonl"]
        await self.refused("hf://org/set/../../out.jsonl", tmp_path / "named")


class TestObjects:
    async def test_an_object_is_gone_on_with_where_it_broke(
        self, s3: ObjectStore, tmp_path: Path
    ) -> None:
        bucket, data = (
            s3.new_bucket(),
            b"".join(b'{"text": "%d"}\n' % number for number in range(250_000)),
        )
        s3.put(bucket, "rows.jsonl", data)
        proxy = S3Proxy(s3.url)
        try:
            source = ObjectSource(quiet, impatient(proxy.url))
            named = dataset(f"s3://{bucket}/rows.jsonl")
            proxy.faults = [Fault(method="GET", cut_after_bytes=1_500_000, times=2)]
            fetched = await fetch(source, named, tmp_path / "work")
        finally:
            proxy.close()
        assert fetched.path.read_bytes() == data
        assert fetched.origin == f"s3://{bucket}/rows.jsonl"

    async def test_an_object_that_changes_meanwhile_is_not_put_together_of_both(
        self, s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bucket, size = s3.new_bucket(), 3_000_000
        s3.put(bucket, "rows.jsonl", b"a" * size)
        proxy = S3Proxy(s3.url)
        cut, fault_for = Fault(method="GET", cut_after_bytes=1_500_000, times=1), proxy.fault_for

        def changing(method: str, path: str) -> Fault:
            if method == "GET" and cut.times == 0:
                s3.put(bucket, "rows.jsonl", b"b" * size)
            return fault_for(method, path)

        try:
            proxy.faults = [cut]
            monkeypatch.setattr(proxy, "fault_for", changing)
            source, named = (
                ObjectSource(quiet, impatient(proxy.url)),
                dataset(f"s3://{bucket}/rows.jsonl"),
            )
            error = await refused(source, named, tmp_path / "work")
            assert error.reason is Reason.UNAVAILABLE
            assert "rows.jsonl was changed while it was fetched" in error.message
            assert (await fetch(source, named, tmp_path / "work")).path.read_bytes() == b"b" * size
        finally:
            proxy.close()

    async def test_a_transfer_that_never_ends_is_given_up_and_kept_for_the_next_try(
        self, s3: ObjectStore, tmp_path: Path
    ) -> None:
        bucket = s3.new_bucket()
        s3.put(bucket, "set/a.jsonl", ROWS)
        s3.put(bucket, "set/b.jsonl", OTHER)
        proxy = S3Proxy(s3.url)
        try:
            source = ObjectSource(quiet, impatient(proxy.url))
            named = dataset(f"s3://{bucket}/set")
            proxy.faults = [Fault(method="GET", path="b.jsonl", cut_after_bytes=0)]
            error = await refused(source, named, tmp_path / "work")
            assert error.reason is Reason.UNAVAILABLE
            assert "set/b.jsonl did not arrive whole" in error.message
            proxy.heal()
            proxy.requests.clear()
            fetched = await fetch(source, named, tmp_path / "work")
            assert proxy.seen("GET", "a.jsonl") == []
        finally:
            proxy.close()
        assert files_of(fetched.path) == {"a.jsonl": ROWS, "b.jsonl": OTHER}

    async def test_a_bucket_that_is_not_there_is_bad_data(
        self, s3: ObjectStore, tmp_path: Path
    ) -> None:
        error = await refused(ObjectSource(quiet), dataset("s3://no-such-bucket/x"), tmp_path / "w")
        assert error.reason is Reason.BAD_DATA
        assert "no such bucket" in error.message
        assert "AWS_" in error.next_step

    async def test_a_refusal_names_the_environment_and_no_credentials(
        self, s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        proxy = S3Proxy(s3.url)
        try:
            proxy.faults = [Fault(status=403, code="AccessDenied")]
            source = ObjectSource(quiet, impatient(proxy.url))
            error = await refused(source, dataset("s3://bucket/set/*.jsonl"), tmp_path / "work")
        finally:
            proxy.close()
        assert error.reason is Reason.BAD_DATA
        assert "AWS_ACCESS_KEY_ID" in error.next_step


@pytest.mark.parametrize("path", ["https://host/a.jsonl", "ftp://host/a", "gs://bucket/a"])
def test_an_unknown_scheme_is_refused_with_the_spec(path: str) -> None:
    with pytest.raises(GraftError, match=r"a hub id, or begin with hf:// or s3://") as caught:
        dataset(path)
    assert caught.value.reason is Reason.INVALID_SPEC


def test_credentials_in_a_spec_are_refused_and_not_repeated() -> None:
    with pytest.raises(GraftError, match="must not") as caught:
        dataset("s3://key:geheim@bucket/a.jsonl")
    assert "geheim" not in json.dumps([str(caught.value), caught.value.metadata])
