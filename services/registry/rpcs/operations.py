"""RPCs of OperationsService about leases, collection, and namespaces with their limits."""

from __future__ import annotations

from dataclasses import dataclass

from graft.registry.v1 import operations_service_pb2 as pb
from graft.registry.v1 import operations_service_pb2_grpc as rpc

from services.common.interceptors import Context
from services.registry.catalogue.audit import AuditLog
from services.registry.catalogue.leases import Leases
from services.registry.catalogue.usage import Namespaces
from services.registry.collection.collector import Collector
from services.registry.convert import operations as convert
from services.registry.convert.checks import check_text
from services.registry.pages import PageTokens, page_limit


@dataclass(frozen=True, slots=True)
class OperationsParts:
    """What OperationsService's answers are made with."""

    leases: Leases
    namespaces: Namespaces
    collector: Collector
    audit: AuditLog
    tokens: PageTokens


class OperationsGroup(rpc.OperationsServiceServicer):
    """Some of the RPCs of OperationsService."""

    def __init__(self, parts: OperationsParts) -> None:
        self.parts = parts


class LeaseRpcs(OperationsGroup):
    """Who needs which bytes."""

    async def AcquireLease(self, request: pb.AcquireLeaseRequest, context: Context) -> pb.Lease:
        new = convert.new_lease(request)
        return convert.lease_message(await self.parts.leases.acquire(new))

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Context) -> pb.Lease:
        lease, targets = convert.lease_id(request.name), convert.targets(request.targets)
        return convert.lease_message(await self.parts.leases.renew(lease, targets))

    async def ReleaseLease(
        self, request: pb.ReleaseLeaseRequest, context: Context
    ) -> pb.ReleaseLeaseResponse:
        await self.parts.leases.release(convert.lease_id(request.name))
        return pb.ReleaseLeaseResponse()

    async def ListLeases(
        self, request: pb.ListLeasesRequest, context: Context
    ) -> pb.ListLeasesResponse:
        target = convert.target(request.target) if request.target else ""
        after = self.parts.tokens.read("ListLeases", target, request.page_token)
        page = await self.parts.leases.list(page_limit(request.page_size), after, target)
        return pb.ListLeasesResponse(
            leases=map(convert.lease_message, page.items),
            next_page_token=self.parts.tokens.make("ListLeases", target, page.next_key),
        )


class CollectionRpcs(OperationsGroup):
    """Bytes that nothing needs."""

    async def CollectGarbage(
        self, request: pb.CollectGarbageRequest, context: Context
    ) -> pb.CollectGarbageResponse:
        return convert.collection_message(await self.parts.collector.collect(request.dry_run))


class NamespaceRpcs(OperationsGroup):
    """Namespaces and what they may use."""

    async def GetNamespace(self, request: pb.GetNamespaceRequest, context: Context) -> pb.Namespace:
        namespace = convert.namespace_id(request.name)
        return convert.namespace_message(await self.parts.namespaces.get(namespace))

    async def ListNamespaces(
        self, request: pb.ListNamespacesRequest, context: Context
    ) -> pb.ListNamespacesResponse:
        after = self.parts.tokens.read("ListNamespaces", "", request.page_token)
        page = await self.parts.namespaces.list(page_limit(request.page_size), after)
        return pb.ListNamespacesResponse(
            namespaces=map(convert.namespace_message, page.items),
            next_page_token=self.parts.tokens.make("ListNamespaces", "", page.next_key),
        )

    async def SetQuota(self, request: pb.SetQuotaRequest, context: Context) -> pb.Namespace:
        changed = await self.parts.namespaces.set_quota(
            convert.namespace_id(request.name),
            convert.quota(request),
            check_text("reason", request.reason),
        )
        return convert.namespace_message(changed)
