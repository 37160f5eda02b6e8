"""kill -9 of the registry at named points, on both databases: what was acknowledged is there, and
nothing is half done."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from graft.blobs import describe_file
from graft.client import Client
from graft.errors import GraftError
from graft.registry.v1 import blob_service_pb2 as blob_pb
from graft.registry.v1 import registry_service_pb2 as pb
from graft.registry.v1.blob_service_pb2_grpc import BlobServiceStub

from tests.support.halting_registry import HALT_AT
from tests.support.models import make_adapter
from tests.support.postgres import PostgresServer
from tests.support.processes import ServiceProcess
from tests.support.registry import RegistryCalls, registry_calls

HALTING = "tests.support.halting_registry"
BOT = "namespaces/default/adapters/bot"
Start = Callable[..., ServiceProcess]


@pytest.fixture
def start(
    database: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Start:
    """Starts a registry on the same data again and again; one that halts, where a point is given."""
    settings = {"collection_interval_s": "0", "collection_grace_s": "0"}
    if database == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        settings["database"] = server.create_database()

    def started(halt: str = "") -> ServiceProcess:
        monkeypatch.setenv(HALT_AT, halt)
        module = HALTING if halt else "services.registry"
        return ServiceProcess("registry", tmp_path / "registry", module=module, **settings)

    return started


def at(*points: str, long: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """Parametrizes with the database and the point where the registry halts; all pairs in the long form.

    In the short form each point has its turn on SQLite, and the last on PostgreSQL too, but for those of the long
    form alone.
    """
    short = {("sqlite", point) for point in points} | {("postgresql", points[-1])}
    points += long
    pairs = [(database, point) for database in ("sqlite", "postgresql") for point in points]
    return pytest.mark.parametrize(
        ("database", "halt"),
        [pytest.param(*pair, marks=[] if pair in short else [pytest.mark.soak]) for pair in pairs],
    )


async def prepared(calls: RegistryCalls, tiny_base: Path) -> str:
    """The fingerprint of a recorded base; "bot" is an adapter of it."""
    base = await calls.create_base(tiny_base)
    await calls.create_adapter()
    return base.fingerprint.digest


async def whole_events(calls: RegistryCalls) -> list[pb.WatchResponse]:
    """All events from the first on; their revisions have no gap."""
    watch = calls.stub.Watch(pb.WatchRequest(parent="namespaces/-"))
    found = []
    while (news := await calls.next_of(watch)).WhichOneof("change") is not None:
        found.append(news)
    watch.cancel()
    assert [news.revision for news in found] == list(range(1, len(found) + 1))
    return found


@at("between row and answer", "between bytes and row", long=("in mid-upload",))
async def test_an_upload_goes_on(start: Start, tmp_path: Path, halt: str) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(8 * 1024 * 1024 + 5))
    file = describe_file(tmp_path, path)
    with start(halt) as process:
        await process.ready()
        async with registry_calls(process.address) as calls:
            with pytest.raises(GraftError):
                await calls.blobs.upload(path, file)
        assert process.process.wait(30) == -9
    with start() as process:
        await process.ready()
        async with registry_calls(process.address) as calls:
            query = blob_pb.QueryWriteStatusRequest(digest=file.digest)
            status = await BlobServiceStub(calls.channel).QueryWriteStatus(query)
            assert status.committed_size_bytes > 0, "what was kept is gone on with"
            assert status.complete == (halt == "between row and answer")
            await calls.blobs.upload(path, file)
            await calls.blobs.fetch(file, tmp_path / "back")
            assert (tmp_path / "back").read_bytes() == path.read_bytes()
            assert await calls.blobs.missing([file.digest]) == set()


@at("in the commit's transaction", "between commit and answer")
async def test_a_commit_is_there_once_or_not_at_all(
    start: Start, tmp_path: Path, tiny_base: Path, halt: str
) -> None:
    folder, request_id = make_adapter(tmp_path / "adapter", tiny_base), uuid.uuid4().hex
    with start(halt) as process:
        await process.ready()
        async with registry_calls(process.address) as calls:
            fingerprint = await prepared(calls, tiny_base)
            with pytest.raises(GraftError):
                await calls.commit(folder, fingerprint, request_id=request_id)
        assert process.process.wait(30) == -9
    with start() as process:
        await process.ready()
        async with registry_calls(process.address) as calls:
            listed = await calls.stub.ListVersions(pb.ListVersionsRequest(parent=BOT))
            stored = halt == "between commit and answer"
            assert len(listed.versions) == (1 if stored else 0)
            version = await calls.commit(folder, fingerprint, request_id=request_id)
            assert version.number == 1
            listed = await calls.stub.ListVersions(pb.ListVersionsRequest(parent=BOT))
            assert [one.name for one in listed.versions] == [version.name]
            kinds = [news.WhichOneof("change") for news in await whole_events(calls)]
            assert kinds == ["base", "adapter", "version"]
        async with Client(registry=process.address) as client:
            await client.adapters.pull("bot:1", tmp_path / "pulled")
            await client.audit.verify()


@at("between mark and removal", "between bytes' and row's removal")
async def test_a_collection_is_finished_and_takes_nothing_needed(
    start: Start, tmp_path: Path, tiny_base: Path, halt: str
) -> None:
    folder = make_adapter(tmp_path / "adapter", tiny_base)
    waste = tmp_path / "waste.bin"
    waste.write_bytes(os.urandom(1000))
    file = describe_file(tmp_path, waste)
    with start(halt) as process:
        await process.ready()
        async with registry_calls(process.address) as calls:
            fingerprint = await prepared(calls, tiny_base)
            version = await calls.commit(folder, fingerprint)
            await calls.blobs.upload(waste, file)
        async with Client(registry=process.address) as client:
            with pytest.raises(GraftError):
                await client.operations.collect()
        assert process.process.wait(30) == -9
    with start() as process:
        await process.ready()
        async with (
            registry_calls(process.address) as calls,
            Client(registry=process.address) as client,
        ):
            assert await calls.blobs.missing([file.digest]) == {file.digest}
            await client.operations.collect()
            await client.adapters.pull("bot:1", tmp_path / "pulled")
            digests = [one.digest for one in version.manifest.files]
            assert await calls.blobs.missing(digests) == set()
            await calls.blobs.upload(waste, file)
            await calls.blobs.fetch(file, tmp_path / "back")
            assert (tmp_path / "back").read_bytes() == waste.read_bytes()
