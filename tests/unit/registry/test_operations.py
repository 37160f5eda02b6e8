"""Leases, collection and quotas as a client of a real registry sees them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc import error_details_pb2
from graft.blobs import describe_file
from graft.channel import rpc_errors
from graft.digests import digest_bytes
from graft.errors import GraftError, InvalidError, Reason
from graft.registry.v1 import operations_service_pb2 as pb
from graft.registry.v1 import registry_service_pb2 as registry_pb
from graft.registry.v1.operations_service_pb2_grpc import OperationsServiceStub
from grpc_status import rpc_status

from tests.support.registry import RegistryCalls, registry_calls, running_registry
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from graft.registry.v1.operations_service_pb2_grpc import OperationsServiceAsyncStub

DIGEST = digest_bytes(b"to come")


@pytest.fixture
def operations(calls: RegistryCalls) -> OperationsServiceAsyncStub:
    """The service behind the same channel."""
    return OperationsServiceStub(calls.channel)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"holder": "", "targets": [DIGEST]}, "holder is empty"),
        ({"holder": "h", "targets": []}, "targets is empty"),
        ({"holder": "h", "targets": ["sha256:short"]}, "neither a version nor a digest"),
        ({"holder": "h", "targets": [DIGEST], "ttl_s": 0.5}, "ttl_s is 0.5"),
        ({"holder": "h", "targets": [DIGEST], "ttl_s": float("nan")}, "ttl_s is nan"),
        ({"holder": "h", "targets": [DIGEST], "ttl_s": 1e9}, "ttl_s is"),
        ({"holder": "h" * 300, "targets": [DIGEST]}, "holder is too long"),
        ({"holder": "h", "targets": [digest_bytes(b"%d" % n) for n in range(1001)]}, "1001"),
    ],
)
async def test_a_lease_that_cannot_be_is_refused_by_field(
    operations: OperationsServiceAsyncStub, fields: dict[str, object], what: str
) -> None:
    with pytest.raises(InvalidError, match=what), rpc_errors("the registry"):
        await operations.AcquireLease(pb.AcquireLeaseRequest(**fields))  # type: ignore[arg-type]


async def test_a_lease_lives_through_its_calls(operations: OperationsServiceAsyncStub) -> None:
    lease = await operations.AcquireLease(
        pb.AcquireLeaseRequest(holder="h", purpose="upload", targets=[DIGEST], ttl_s=5)
    )
    assert lease.name.startswith("leases/")
    renewed = await operations.RenewLease(pb.RenewLeaseRequest(name=lease.name))
    assert renewed.targets == [DIGEST]
    found = await operations.ListLeases(pb.ListLeasesRequest(target=DIGEST))
    assert [one.name for one in found.leases] == [lease.name]
    await operations.ReleaseLease(pb.ReleaseLeaseRequest(name=lease.name))
    with pytest.raises(GraftError) as raised, rpc_errors("the registry"):
        await operations.RenewLease(pb.RenewLeaseRequest(name=lease.name))
    assert raised.value.reason is Reason.LEASE_NOT_FOUND


async def test_a_token_of_another_listing_is_refused(
    operations: OperationsServiceAsyncStub,
) -> None:
    for number in range(3):
        await operations.SetQuota(pb.SetQuotaRequest(name=f"namespaces/n{number}"))
    page = await operations.ListNamespaces(pb.ListNamespacesRequest(page_size=1))
    with pytest.raises(InvalidError), rpc_errors("the registry"):
        await operations.ListLeases(pb.ListLeasesRequest(page_token=page.next_page_token))


async def test_a_quota_answers_with_the_standard_detail(
    operations: OperationsServiceAsyncStub, calls: RegistryCalls, base: registry_pb.Base,
    adapters: list[Path],
) -> None:  # fmt: skip
    await operations.SetQuota(
        pb.SetQuotaRequest(name="namespaces/default", quota=pb.Quota(max_versions=0))
    )
    with pytest.raises(GraftError, match="0 of 0 versions, and 1 more") as raised:
        await calls.commit(adapters[0], base.fingerprint.digest)
    assert raised.value.reason is Reason.QUOTA_EXCEEDED
    adapter = registry_pb.Adapter(name="namespaces/default/adapters/more", base=base.name)
    await operations.SetQuota(
        pb.SetQuotaRequest(name="namespaces/default", quota=pb.Quota(max_adapters=1))
    )
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await calls.stub.CreateAdapter(registry_pb.CreateAdapterRequest(adapter=adapter))
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    status = rpc_status.from_call(failed.value)  # type: ignore[arg-type]
    assert status is not None
    failure = error_details_pb2.QuotaFailure()
    assert any(one.Unpack(failure) for one in status.details)
    assert "1 of 1 adapters" in failure.violations[0].description
    with pytest.raises(InvalidError, match="max_bytes is -1"), rpc_errors("the registry"):
        await operations.SetQuota(
            pb.SetQuotaRequest(name="namespaces/default", quota=pb.Quota(max_bytes=-1))
        )


async def test_a_version_goes_from_delete_to_collection(
    tmp_path: Path, tiny_base: Path, adapters: list[Path]
) -> None:
    settings = {"collection_grace_s": 0, "collection_interval_s": 0}
    async with (
        running_registry(tmp_path / "registry", **settings) as server,
        registry_calls(server.address) as calls,
    ):
        operations, stub = OperationsServiceStub(calls.channel), calls.stub
        base = await calls.create_base(tiny_base)
        await calls.create_adapter()
        version = await calls.commit(adapters[0], base.fingerprint.digest)
        assert not (await operations.CollectGarbage(pb.CollectGarbageRequest())).removed_blobs
        await stub.DeleteVersion(registry_pb.DeleteVersionRequest(name=version.name, reason="old"))
        await stub.UndeleteVersion(registry_pb.UndeleteVersionRequest(name=version.name))
        await stub.DeleteVersion(registry_pb.DeleteVersionRequest(name=version.name))
        gone = await stub.PurgeVersion(registry_pb.PurgeVersionRequest(name=version.name))
        assert gone.HasField("purge_time")
        digests = sorted(file.digest for file in version.manifest.files)
        preview = await operations.CollectGarbage(pb.CollectGarbageRequest(dry_run=True))
        assert sorted(preview.removed_digests) == digests
        done = await operations.CollectGarbage(pb.CollectGarbageRequest())
        assert (done.removed_blobs, sorted(done.removed_digests)) == (len(digests), digests)
        assert await calls.blobs.missing(digests) == set(digests)
        again = await calls.commit(adapters[1], base.fingerprint.digest)
        assert again.number == 2, "a number is never given again"


async def test_a_collection_in_the_background_needs_nobody_to_ask(
    tmp_path: Path,
) -> None:
    settings = {"collection_grace_s": 0, "collection_interval_s": 0.05}
    data = tmp_path / "data"
    data.write_bytes(b"nobody commits it")
    async with (
        running_registry(tmp_path / "other", **settings) as server,
        registry_calls(server.address) as calls,
    ):
        file = describe_file(tmp_path, data)
        await calls.blobs.upload(data, file)

        async def gone() -> bool:
            return await calls.blobs.missing([file.digest]) == {file.digest}

        await eventually(gone, "the collection")
