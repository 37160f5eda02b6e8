"""The registry behind a gRPC channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import grpc
from graft.bases import read_base
from graft.blobs import BlobClient
from graft.channel import call_metadata, rpc_errors
from graft.errors import ConflictError, GraftError, NotFoundError, Reason
from graft.leases import LeaseKeeper, default_holder
from graft.names import (
    DEFAULT_ALIAS,
    ModelReference,
    adapter_name,
    alias_name,
    namespace_name,
    version_name,
)
from graft.registry.v1 import registry_service_pb2 as pb
from graft.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from graft.rollout_messages import report_message
from graft.rollout_policy import RolloutReport

from services.common.logs import get_logger
from services.inference.bases.domain import BaseReference, BaseVersion
from services.inference.domain import AdapterFile, AdapterSeen, AdapterVersion, Event, Snapshot
from services.inference.registry import convert
from services.inference.registry.base import Registry

_PEER = "the registry"
_ACTOR = "inference"
_PAGE_SIZE = 1000


class RemoteRegistry(Registry):
    """Reads one namespace through a channel that it closes with itself."""

    def __init__(self, channel: grpc.aio.Channel, namespace: str) -> None:
        self._channel = channel
        self._stub = RegistryServiceStub(channel)
        self._blobs = BlobClient(channel, actor=_ACTOR)
        self._namespace = namespace

    async def record_base(self, folder: Path, name: str) -> str:
        base = await asyncio.to_thread(read_base, folder, name)
        digest = base.fingerprint.digest
        try:
            with rpc_errors(_PEER):
                await self._stub.CreateBase(
                    pb.CreateBaseRequest(base=base), metadata=call_metadata(actor=_ACTOR)
                )
        except ConflictError:
            # A later version of that base is served under its name as well.
            if not await self._is_version_of(name, digest):
                raise
        return digest

    async def _is_version_of(self, base: str, fingerprint: str) -> bool:
        request = pb.ListVersionsRequest(
            parent=base, filter=f'fingerprint = "{fingerprint}"', page_size=1
        )
        with rpc_errors(_PEER):
            recorded = await self._stub.GetBase(
                pb.GetBaseRequest(name=base), metadata=call_metadata(actor=_ACTOR)
            )
            page = await self._stub.ListVersions(request, metadata=call_metadata(actor=_ACTOR))
        return bool(page.versions) and not recorded.HasField("delete_time")

    async def snapshot(self) -> Snapshot:
        # Aliases first: what happens between the two calls is in the watch after their revision.
        parent = f"{namespace_name(self._namespace)}/adapters/-"
        with rpc_errors(_PEER):
            aliases = await self._stub.ListAliases(
                pb.ListAliasesRequest(parent=parent), metadata=call_metadata(actor=_ACTOR)
            )
        adapters = await self._adapters()
        return Snapshot(
            aliases.revision,
            adapters,
            tuple(
                convert.alias_seen(alias)
                for alias in aliases.aliases
                if convert.of_adapter(alias.name)
            ),
        )

    async def _adapters(self) -> tuple[AdapterSeen, ...]:
        found: list[AdapterSeen] = []
        request = pb.ListAdaptersRequest(
            parent=namespace_name(self._namespace), page_size=_PAGE_SIZE
        )
        while True:
            with rpc_errors(_PEER):
                page = await self._stub.ListAdapters(request, metadata=call_metadata(actor=_ACTOR))
            found.extend(convert.adapter_seen(adapter) for adapter in page.adapters)
            if not page.next_page_token:
                return tuple(found)
            request.page_token = page.next_page_token

    async def watch(self, after_revision: int) -> AsyncIterator[Event]:
        request = pb.WatchRequest(
            parent=namespace_name(self._namespace), after_revision=after_revision
        )
        with rpc_errors(_PEER):
            async for message in self._stub.Watch(request, metadata=call_metadata(actor=_ACTOR)):
                yield convert.event(message)
        raise GraftError(
            Reason.UNAVAILABLE,
            "the registry ended the watch",
            next_step="The service asks again by itself.",
        )

    async def version(self, name: str) -> AdapterVersion:
        return convert.adapter_version(await self._message(name))

    async def find(self, reference: ModelReference) -> AdapterVersion:
        return convert.adapter_version(await self.find_message(reference))

    async def find_message(self, reference: ModelReference) -> pb.Version:
        """As find(), with all that the registry says of the version."""
        adapter = adapter_name(reference.namespace, reference.name)
        if reference.version is not None:
            return await self._message(version_name(adapter, reference.version))
        if reference.alias is not None:
            return await self._message(alias_name(adapter, reference.alias))
        try:
            return await self._message(alias_name(adapter, DEFAULT_ALIAS))
        except NotFoundError as error:
            if error.reason is not Reason.ALIAS_NOT_FOUND:
                raise
        return await self._newest(adapter)

    async def base_version(self, reference: BaseReference) -> BaseVersion:
        base = reference.base
        if reference.number is not None:
            return convert.base_version(await self._message(version_name(base, reference.number)))
        if reference.alias is not None:
            return convert.base_version(await self._message(alias_name(base, reference.alias)))
        try:
            return convert.base_version(await self._message(alias_name(base, DEFAULT_ALIAS)))
        except NotFoundError as error:
            if error.reason is not Reason.ALIAS_NOT_FOUND:
                raise
        with rpc_errors(_PEER):
            request = pb.ListVersionsRequest(parent=base, page_size=1)
            page = await self._stub.ListVersions(request, metadata=call_metadata(actor=_ACTOR))
        if not page.versions:
            raise GraftError(
                Reason.VERSION_NOT_FOUND,
                f"{base} has no version, so the registry does not hold its files",
                next_step="Push its folder with `graft bases push`, or name the folder.",
            )
        return convert.base_version(page.versions[0])

    async def _message(self, name: str) -> pb.Version:
        with rpc_errors(_PEER):
            return await self._stub.GetVersion(
                pb.GetVersionRequest(name=name), metadata=call_metadata(actor=_ACTOR)
            )

    async def _newest(self, adapter: str) -> pb.Version:
        with rpc_errors(_PEER):
            page = await self._stub.ListVersions(
                pb.ListVersionsRequest(parent=adapter, page_size=1),
                metadata=call_metadata(actor=_ACTOR),
            )
        if not page.versions:
            raise GraftError(
                Reason.VERSION_NOT_FOUND,
                f"{adapter} has no version yet",
                next_step="Train one with `graft train`, or push one with `graft adapters push`.",
            )
        return page.versions[0]

    async def fetch(self, file: AdapterFile, target: Path) -> None:
        await self._blobs.fetch(convert.file_message(file), target)

    async def take_back(self, alias: str, etag: str, report: RolloutReport) -> None:
        parent = alias.rsplit("/", 2)[0]
        request = pb.RollbackAliasRequest(
            name=alias,
            etag=etag,
            reason=f"version {report.version} is taken back: {report.detail}",
            canaries=[version_name(parent, report.version)],
            report=report_message(report, parent),
        )
        with rpc_errors(_PEER):
            await self._stub.RollbackAlias(request, metadata=call_metadata(actor=_ACTOR))

    async def advance(self, alias: str, etag: str, reason: str) -> None:
        request = pb.AdvanceRolloutRequest(name=alias, etag=etag, reason=reason)
        with rpc_errors(_PEER):
            await self._stub.AdvanceRollout(request, metadata=call_metadata(actor=_ACTOR))

    def lease(self, targets: Callable[[], Iterable[str]]) -> LeaseKeeper:
        def warn(text: str) -> None:
            get_logger().warning("versions are not held", error=text)

        return LeaseKeeper(self._channel, default_holder(_ACTOR), "serve", targets, warn=warn)

    async def close(self) -> None:
        await self._channel.close(None)
