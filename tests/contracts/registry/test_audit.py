"""The audit log: one entry for every mutation, which nobody changes unseen, on both databases."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import graft
import pytest
from google.protobuf.message import Message
from graft.audit import AuditEntry, Chain
from graft.bases import read_base
from graft.blobs import describe_file
from graft.channel import call_metadata, open_channel, rpc_errors
from graft.digests import audit_digest
from graft.errors import GraftError, Reason
from graft.keys import load_key, new_key
from graft.registry.v1 import blob_service_pb2 as blobs
from graft.registry.v1 import operations_service_pb2 as ops
from graft.registry.v1 import registry_service_pb2 as pb
from graft.registry.v1.operations_service_pb2_grpc import OperationsServiceStub
from graft.registry.v1.rollout_pb2 import Rollout, RolloutLimits
from graft.signatures import sign
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.registry.catalogue.base import Catalogue
from services.registry.catalogue.database import Database
from services.registry.server import RegistryServer
from tests.support.models import make_adapter
from tests.support.registry import RegistryCalls, running_registry
from tests.support.waiting import eventually

NS = "namespaces/default"
BOT, TINY = f"{NS}/adapters/bot", f"{NS}/bases/tiny"
ONE, TWO, ALIAS = f"{BOT}/versions/1", f"{BOT}/versions/2", f"{BOT}/aliases/production"
CANARY = pb.Canary(version=TWO, weight_percent=5)
ROLLOUT = Rollout(limits=RolloutLimits(window_s=1, max_error_rate=0.1), steps_percent=[5, 50])
# Why these leave no entry though they are no mere reads.
NOT_AUDITED = {
    "AcquireLease": "a lease changes nothing that exists, and is renewed every few seconds",
    "RenewLease": "as AcquireLease",
    "ReleaseLease": "as AcquireLease",
    "Write": "bytes that no version names are no resource; CommitVersion tells of them",
    "QueryWriteStatus": "a read",
    "Read": "a read",
    "FindMissing": "only keeps bytes from a collection for a while",
    "SignUpload": "as Write",
    "FinishUpload": "as Write",
    "SignDownload": "a read",
    "CollectGarbage": "what it purges has entries of its own; bytes that nothing needs have none",
}


@pytest.fixture(params=["sqlite", "postgresql"])
async def registry(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[RegistryServer, str]]:
    """A registry on each database, and the URL of that database."""
    settings: dict[str, Any] = {}
    if request.param == "postgresql":
        settings["database"] = request.getfixturevalue("postgres").create_database()
    async with running_registry(tmp_path / "registry", **settings) as server:
        yield server, settings.get("database", "")


@pytest.fixture
async def calls(registry: tuple[RegistryServer, str]) -> AsyncIterator[RegistryCalls]:
    """Calls to it."""
    async with open_channel(registry[0].address) as channel:
        yield RegistryCalls(channel)


@pytest.fixture
async def client(registry: tuple[RegistryServer, str]) -> AsyncIterator[graft.Client]:
    """The SDK beside it."""
    async with graft.Client(registry=registry[0].address) as client:
        yield client


def steps(commits: Sequence[pb.CommitVersionRequest], base: pb.Base) -> list[tuple[str, Message]]:
    """Every mutation once or more, in an order in which each is possible; with what it changes."""
    policy = pb.AliasPolicy(name=ALIAS)
    return [
        (TINY, pb.CreateBaseRequest(base=base)),
        (TINY, pb.UpdateBaseRequest(base=pb.Base(name=TINY, description="small"))),
        (BOT, pb.CreateAdapterRequest(adapter=pb.Adapter(name=BOT, base=TINY))),
        (BOT, pb.UpdateAdapterRequest(adapter=pb.Adapter(name=BOT, labels={"a": "1"}))),
        (ONE, commits[0]),
        (TWO, commits[1]),
        (ONE, pb.UpdateVersionRequest(version=pb.Version(name=ONE, description="good"))),
        (ONE, pb.SignVersionRequest(name=ONE)),
        (ONE, pb.ApproveVersionRequest(name=ONE, reason="looked at it")),
        (ONE, pb.RevokeApprovalRequest(name=ONE)),
        (ALIAS, pb.SetAliasRequest(name=ALIAS, version=ONE)),
        (ALIAS, pb.SetAliasRequest(name=ALIAS, version=TWO)),
        (ALIAS, pb.RollbackAliasRequest(name=ALIAS)),
        (ALIAS, pb.SetAliasPolicyRequest(policy=policy)),
        (ALIAS, pb.SetAliasRequest(name=ALIAS, version=ONE, canaries=[CANARY], rollout=ROLLOUT)),
        (ALIAS, pb.AdvanceRolloutRequest(name=ALIAS, reason="well")),
        (ALIAS, pb.DeleteAliasRequest(name=ALIAS)),
        (TWO, pb.DeleteVersionRequest(name=TWO)),
        (TWO, pb.UndeleteVersionRequest(name=TWO)),
        (ONE, pb.DeleteVersionRequest(name=ONE)),
        (ONE, pb.PurgeVersionRequest(name=ONE, reason="wrong data")),
        (BOT, pb.DeleteAdapterRequest(name=BOT)),
        (BOT, pb.UndeleteAdapterRequest(name=BOT)),
        (BOT, pb.DeleteAdapterRequest(name=BOT, reason="old")),
        (TINY, pb.DeleteBaseRequest(name=TINY)),
        (TINY, pb.UndeleteBaseRequest(name=TINY)),
        (TINY, pb.DeleteBaseRequest(name=TINY)),
        (NS, ops.SetQuotaRequest(name=NS, quota=ops.Quota(max_versions=9))),
    ]


def mutations() -> set[str]:
    """The RPCs that are not plain reads."""
    services = (
        pb.DESCRIPTOR.services_by_name["RegistryService"],
        ops.DESCRIPTOR.services_by_name["OperationsService"],
        blobs.DESCRIPTOR.services_by_name["BlobService"],
    )
    names = {method.name for service in services for method in service.methods}
    return {name for name in names if not name.startswith(("Get", "List", "Watch"))}


async def mutate(calls: RegistryCalls, request: Message, request_id: str) -> None:
    """Sends a request as ann."""
    method = type(request).__name__.removesuffix("Request")
    stub: Any = calls.stub
    if type(request).DESCRIPTOR.file.name.endswith("operations_service.proto"):
        stub = OperationsServiceStub(calls.channel)
    with rpc_errors("the registry"):
        await getattr(stub, method)(request, metadata=call_metadata(request_id, "ann"))


async def has_advanced(calls: RegistryCalls, request: Message, request_id: str) -> bool:
    """Whether the step was taken: not before a window has passed."""
    try:
        await mutate(calls, request, request_id)
    except GraftError as error:
        if error.reason is not Reason.NO_ROLLOUT:
            raise
        return False
    return True


async def entries(client: graft.Client, after: int = 0, **asked: Any) -> list[AuditEntry]:
    """The log of all namespaces after a number."""
    return [one async for one in client.audit.entries(after, **{"everywhere": True, **asked})]


async def test_every_mutation_leaves_one_entry_with_who_how_and_what(
    calls: RegistryCalls, client: graft.Client, tiny_base: Path, tmp_path: Path
) -> None:
    base = read_base(tiny_base, TINY)
    commits: list[pb.CommitVersionRequest] = []
    for seed in (1, 2):
        folder = make_adapter(tmp_path / str(seed), tiny_base, seed=seed)
        files = [describe_file(folder, path) for path in sorted(folder.iterdir())]
        for file in files:
            await calls.blobs.upload(folder / file.path, file)
        fingerprint = base.fingerprint.digest
        commits.append(
            pb.CommitVersionRequest(
                parent=BOT, files=files, base_fingerprint=fingerprint, request_id=f"c{seed}"
            )
        )
    new_key(tmp_path / "key")
    done: set[str] = set()
    planned = steps(commits, base)
    for number, (resource, request) in enumerate(planned, start=1):
        method = type(request).__name__.removesuffix("Request")
        if isinstance(request, pb.SignVersionRequest):
            digest = (await calls.get_version(ONE)).digest
            request.envelope_json = sign(digest, load_key(tmp_path / "key"))
        if isinstance(request, pb.AdvanceRolloutRequest):
            request.etag = (await calls.stub.GetAlias(pb.GetAliasRequest(name=ALIAS))).etag
            await eventually(partial(has_advanced, calls, request, f"request-{number}"), "the step")
        else:
            await mutate(calls, request, f"request-{number}")
        found = await entries(client, number - 1)
        assert [(one.number, one.method, one.resource) for one in found] == [
            (number, method, resource)
        ]
        assert (found[0].actor, found[0].request_id) == ("ann", f"request-{number}")
        assert found[0].namespace == "default"
        done.add(method)
    # What was committed is answered again, and nothing was done.
    await mutate(calls, commits[0], "again")
    assert await entries(client, len(planned)) == []
    # Purging what has versions ends those too, each with an entry of its own.
    for request in (pb.PurgeAdapterRequest(name=BOT), pb.PurgeBaseRequest(name=TINY)):
        before = len(await entries(client))
        await mutate(calls, request, "purge")
        found = await entries(client, before)
        assert found[0].resource == request.name
        assert {one.method for one in found} == {type(request).__name__.removesuffix("Request")}
        assert len({one.resource for one in found}) == len(found)
        done.add(found[0].method)
    assert done | NOT_AUDITED.keys() == mutations()
    whole = await entries(client)
    assert json.loads(whole[6].detail_json)["after"] == {"description": "good"}
    assert json.loads(whole[20].detail_json)["reason"] == "wrong data"
    last = await client.audit.verify(known=whole[0].digest)
    assert last == whole[-1]


async def test_the_log_is_read_by_namespace_and_resource_in_pages(
    calls: RegistryCalls, client: graft.Client, tiny_base: Path
) -> None:
    await calls.create_base(tiny_base)
    for name in ("bot", "bot2"):
        await calls.create_adapter(name)
        await calls.stub.UpdateAdapter(
            pb.UpdateAdapterRequest(
                adapter=pb.Adapter(name=f"{NS}/adapters/{name}", description="x")
            )
        )
    assert [one.number for one in await entries(client, resource=BOT)] == [2, 3]
    assert [one.number for one in await entries(client, 4)] == [5]
    assert [one.number for one in await entries(client, everywhere=False)] == [1, 2, 3, 4, 5]
    other = ops.ListAuditEntriesRequest(parent="namespaces/other")
    stub = OperationsServiceStub(calls.channel)
    assert not (await stub.ListAuditEntries(other)).entries
    numbers, token = [], ""
    while True:
        request = ops.ListAuditEntriesRequest(
            parent="namespaces/-", page_size=2, page_token=token, after_number=1
        )
        page = await stub.ListAuditEntries(request)
        numbers += [one.number for one in page.entries]
        token = page.next_page_token
        if not token:
            break
    assert numbers == [2, 3, 4, 5]


async def test_following_tells_what_comes(
    calls: RegistryCalls, client: graft.Client, tiny_base: Path
) -> None:
    following = client.audit.follow(everywhere=True)
    first = asyncio.create_task(anext(following))
    await calls.create_base(tiny_base)
    async with asyncio.timeout(60):
        assert (await first).method == "CreateBase"
        await calls.create_adapter()
        assert (await anext(following)).method == "CreateAdapter"
    await following.aclose()


async def test_no_entry_can_be_changed_or_removed_by_sql(
    database: Database, filled: Catalogue
) -> None:
    statements = [
        "UPDATE audit_entries SET actor = 'nobody' WHERE number = 1",
        "DELETE FROM audit_entries WHERE number = 1",
    ]
    if database.engine.dialect.name == "postgresql":
        statements.append("TRUNCATE audit_entries")
    for statement in statements:
        with pytest.raises(DBAPIError, match="append-only"):
            async with database.engine.begin() as connection:
                await connection.execute(text(statement))


TAMPERED = {
    "UPDATE audit_entries SET actor = 'nobody' WHERE number = 2": "entry 2 is not as it was written",
    "UPDATE audit_entries SET detail = '{}' WHERE number = 3": "entry 3 is not as it was written",
    "UPDATE audit_entries SET time_us = time_us + 1 WHERE number = 1": "entry 1 is not",
    "DELETE FROM audit_entries WHERE number = 2": "after entry 1 comes entry 3",
    "DELETE FROM audit_entries WHERE number = 3": "no entry has the digest sha256:",
}


@pytest.mark.parametrize("statement", TAMPERED, ids=list(TAMPERED.values()))
async def test_whoever_gets_around_the_triggers_is_found_out(
    registry: tuple[RegistryServer, str],
    calls: RegistryCalls,
    client: graft.Client,
    tiny_base: Path,
    tmp_path: Path,
    statement: str,
) -> None:
    await calls.create_base(tiny_base)
    await calls.create_adapter("bot")
    await calls.create_adapter("bot2")
    last = await client.audit.verify()
    assert last is not None
    await tamper(registry[1], tmp_path / "registry", statement)
    with pytest.raises(GraftError, match=TAMPERED[statement]) as raised:
        await client.audit.verify(known=last.digest)
    assert raised.value.reason is Reason.DIGEST_MISMATCH


async def tamper(url: str, folder: Path, statement: str) -> None:
    """Runs a statement with the triggers out of the way, as who owns the database can."""
    if url:
        connection = await asyncpg.connect(url)
        await connection.execute("ALTER TABLE audit_entries DISABLE TRIGGER ALL")
        await connection.execute(statement)
        await connection.close()
        return
    (path,) = folder.glob("*.db")
    with sqlite3.connect(path) as opened:
        for action in ("update", "delete"):
            opened.execute(f"DROP TRIGGER audit_entries_no_{action}")
        opened.execute(statement)
    opened.close()


async def test_an_export_is_checked_without_a_registry(
    calls: RegistryCalls, client: graft.Client, tiny_base: Path
) -> None:
    await calls.create_base(tiny_base)
    await calls.create_adapter("bot")
    await calls.create_adapter("bot2")
    lines = [one.to_json() for one in await entries(client)]
    assert [AuditEntry.from_json(line) for line in lines] == await entries(client)

    def check(part: Sequence[str]) -> None:
        chain = Chain(begins_anywhere=True)
        for line in part:
            chain.add(AuditEntry.from_json(line))
        chain.end()

    check(lines)
    check(lines[1:])
    for wrong in (lines[::-1], [lines[0], lines[2]], [lines[0], lines[1].replace("bot", "bit")]):
        with pytest.raises(GraftError, match="The audit log was changed"):
            check(wrong)
    with pytest.raises(GraftError, match="is no entry"):
        check(["{}"])


def test_the_digest_of_an_entry_is_what_it_always_was() -> None:
    entry = {
        "number": 1,
        "namespace": "default",
        "time_us": 1_700_000_000_000_001,
        "actor": "änn",
        "method": "SetAlias",
        "resource": ALIAS,
        "request_id": "r",
        "detail": "{}",
    }
    written = json.dumps(["before", entry], sort_keys=True, separators=(",", ":"))
    digest = "sha256:" + hashlib.sha256(written.encode()).hexdigest()
    assert audit_digest("before", **entry) == digest  # type: ignore[arg-type]
