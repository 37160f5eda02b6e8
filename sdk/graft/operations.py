"""What keeps a registry in order: leases, collection, namespaces with their limits, and the ends of things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from graft.catalogue import pages
from graft.connection import Connection
from graft.names import namespace_name
from graft.registry.v1 import operations_service_pb2 as pb
from graft.registry.v1 import registry_service_pb2 as registry_pb

_PEER = "the registry"
# A collection of a large store takes its time; it goes on also when nobody waits.
_COLLECTION_S = 3600.0


@dataclass(frozen=True, slots=True)
class Lease:
    """Somebody's need of bytes; targets are names of versions and digests."""

    name: str
    holder: str
    purpose: str
    targets: tuple[str, ...]
    ttl_s: float
    create_time: datetime
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed, or would remove, and why the rest stays (in blobs)."""

    removed_blobs: int
    removed_bytes: int
    removed_uploads: int
    removed_digests: tuple[str, ...]
    purged_versions: tuple[str, ...]
    kept_by_versions: int
    kept_by_leases: int
    kept_by_age: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What a namespace uses and may use; None for no limit."""

    name: str
    used_bytes: int
    used_versions: int
    used_adapters: int
    max_bytes: int | None
    max_versions: int | None
    max_adapters: int | None


@dataclass(frozen=True, slots=True)
class Ended:
    """Where an adapter, a base or a version is in its life; times are None for what did not happen."""

    name: str
    delete_time: datetime | None
    expire_time: datetime | None
    purge_time: datetime | None


class Operations:
    """Leases, collection and limits of a registry, and the ends of its resources.

    A namespace is an id ("default"); the ends take full resource names.
    """

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection, self._namespace = connection, namespace

    async def leases(self, target: str = "") -> Sequence[Lease]:
        """All leases, oldest first, or those on one version or digest."""
        stub = self._connection.operations

        async def page(token: str) -> pb.ListLeasesResponse:
            request = pb.ListLeasesRequest(page_size=1000, page_token=token, target=target)
            return await self._connection.call(stub.ListLeases, request, _PEER)

        return [_lease(one) async for answer in pages(page) for one in answer.leases]

    async def collect(self, dry_run: bool = False) -> Collected:
        """Removes bytes that nothing needs, or says what it would remove.

        Raises:
            GraftError: UNAVAILABLE when a collection is running already.
        """
        stub, request = self._connection.operations, pb.CollectGarbageRequest(dry_run=dry_run)
        done = await self._connection.call(
            stub.CollectGarbage, request, _PEER, timeout_s=_COLLECTION_S
        )
        return Collected(
            removed_blobs=done.removed_blobs,
            removed_bytes=done.removed_bytes,
            removed_uploads=done.removed_uploads,
            removed_digests=tuple(done.removed_digests),
            purged_versions=tuple(done.purged_versions),
            kept_by_versions=done.kept_by_versions,
            kept_by_leases=done.kept_by_leases,
            kept_by_age=done.kept_by_age,
        )

    async def limits(self, namespace: str | None = None) -> Limits:
        """What a namespace uses and may use.

        Raises:
            GraftError: NAMESPACE_NOT_FOUND.
        """
        request = pb.GetNamespaceRequest(name=namespace_name(namespace or self._namespace))
        stub = self._connection.operations
        return _limits(await self._connection.call(stub.GetNamespace, request, _PEER))

    async def all_limits(self) -> Sequence[Limits]:
        """All namespaces, by name."""
        stub = self._connection.operations

        async def page(token: str) -> pb.ListNamespacesResponse:
            request = pb.ListNamespacesRequest(page_size=1000, page_token=token)
            return await self._connection.call(stub.ListNamespaces, request, _PEER)

        return [_limits(one) async for answer in pages(page) for one in answer.namespaces]

    async def set_limits(
        self,
        namespace: str | None = None,
        *,
        max_bytes: int | None = None,
        max_versions: int | None = None,
        max_adapters: int | None = None,
        reason: str = "",
    ) -> Limits:
        """Sets all limits of a namespace; below what is used they only stop growth."""
        request = pb.SetQuotaRequest(
            name=namespace_name(namespace or self._namespace),
            quota=pb.Quota(
                max_bytes=max_bytes, max_versions=max_versions, max_adapters=max_adapters
            ),
            reason=reason,
        )
        stub = self._connection.operations
        return _limits(await self._connection.call(stub.SetQuota, request, _PEER))

    async def delete(self, name: str, *, etag: str = "", reason: str = "") -> Ended:
        """Hides an adapter, a base or a version; undelete() brings it back within its time.

        Raises:
            GraftError: IN_USE naming what uses it, PROTECTED, ETAG_MISMATCH, DELETED.
        """
        stub, call = self._connection.registry, self._connection.call
        fields = {"name": name, "etag": etag, "reason": reason}
        if "/versions/" in name:
            version = registry_pb.DeleteVersionRequest(**fields)
            ended_version = await call(stub.DeleteVersion, version, _PEER)
            return _ended(ended_version)
        if "/bases/" in name:
            base = registry_pb.DeleteBaseRequest(**fields)
            ended_base = await call(stub.DeleteBase, base, _PEER)
            return _ended(ended_base)
        adapter = registry_pb.DeleteAdapterRequest(**fields)
        ended_adapter = await call(stub.DeleteAdapter, adapter, _PEER)
        return _ended(ended_adapter)

    async def undelete(self, name: str) -> Ended:
        """Brings back what was deleted and not yet purged.

        Raises:
            GraftError: DELETED.
        """
        stub, call = self._connection.registry, self._connection.call
        if "/versions/" in name:
            version = registry_pb.UndeleteVersionRequest(name=name)
            ended_version = await call(stub.UndeleteVersion, version, _PEER)
            return _ended(ended_version)
        if "/bases/" in name:
            base = registry_pb.UndeleteBaseRequest(name=name)
            ended_base = await call(stub.UndeleteBase, base, _PEER)
            return _ended(ended_base)
        adapter = registry_pb.UndeleteAdapterRequest(name=name)
        ended_adapter = await call(stub.UndeleteAdapter, adapter, _PEER)
        return _ended(ended_adapter)

    async def purge(self, name: str, *, reason: str = "") -> Ended:
        """Ends what is deleted for good; its name or number is never given again.

        Raises:
            GraftError: NOT_DELETED, IN_USE.
        """
        stub, call = self._connection.registry, self._connection.call
        fields = {"name": name, "reason": reason}
        if "/versions/" in name:
            version = registry_pb.PurgeVersionRequest(**fields)
            ended_version = await call(stub.PurgeVersion, version, _PEER)
            return _ended(ended_version)
        if "/bases/" in name:
            base = registry_pb.PurgeBaseRequest(**fields)
            ended_base = await call(stub.PurgeBase, base, _PEER)
            return _ended(ended_base)
        adapter = registry_pb.PurgeAdapterRequest(**fields)
        ended_adapter = await call(stub.PurgeAdapter, adapter, _PEER)
        return _ended(ended_adapter)


def _lease(message: pb.Lease) -> Lease:
    return Lease(
        name=message.name,
        holder=message.holder,
        purpose=message.purpose,
        targets=tuple(message.targets),
        ttl_s=message.ttl_s,
        create_time=message.create_time.ToDatetime(UTC),
        expire_time=message.expire_time.ToDatetime(UTC),
    )


def _limits(message: pb.Namespace) -> Limits:
    quota, usage = message.quota, message.usage
    return Limits(
        name=message.name,
        used_bytes=usage.bytes,
        used_versions=usage.versions,
        used_adapters=usage.adapters,
        max_bytes=quota.max_bytes if quota.HasField("max_bytes") else None,
        max_versions=quota.max_versions if quota.HasField("max_versions") else None,
        max_adapters=quota.max_adapters if quota.HasField("max_adapters") else None,
    )


def _ended(message: registry_pb.Adapter | registry_pb.Base | registry_pb.Version) -> Ended:
    return Ended(
        name=message.name,
        delete_time=(
            message.delete_time.ToDatetime(UTC) if message.HasField("delete_time") else None
        ),
        expire_time=(
            message.expire_time.ToDatetime(UTC) if message.HasField("expire_time") else None
        ),
        purge_time=message.purge_time.ToDatetime(UTC) if message.HasField("purge_time") else None,
    )
