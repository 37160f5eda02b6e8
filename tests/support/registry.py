"""A real registry in this process, on a free port, and the few calls that tests of others make."""

from __future__ import annotations

import urllib.request
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from graft.bases import read_base
from graft.blobs import BlobClient, describe_file
from graft.channel import open_channel, rpc_errors
from graft.names import adapter_name, alias_name, base_name
from graft.registry.v1 import registry_service_pb2 as pb
from graft.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from services.registry.config import RegistrySettings
from services.registry.server import RegistryServer
from tests.support.schemas import give_schema

if TYPE_CHECKING:
    WatchCall = grpc.aio.UnaryStreamCall[pb.WatchRequest, pb.WatchResponse]
else:
    WatchCall = grpc.aio.UnaryStreamCall


async def start_registry(folder: Path, **settings: Any) -> RegistryServer:
    """A registry that serves at .address until .stop(); settings are RegistrySettings fields."""
    chosen = RegistrySettings(data_dir=folder, **settings)
    if not chosen.postgres_url:
        give_schema(chosen.database_path)
    server = RegistryServer(chosen)
    await server.start()
    return server


class RegistryCalls:
    """The registry as its clients call it; failures are raised as GraftError."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.stub = RegistryServiceStub(channel)
        self.blobs = BlobClient(channel)

    async def create_base(self, folder: Path, name: str = "tiny", ns: str = "default") -> pb.Base:
        """Records a model's folder."""
        base = read_base(folder, base_name(ns, name))
        with rpc_errors("the registry"):
            return await self.stub.CreateBase(pb.CreateBaseRequest(base=base))

    async def create_base_message(self, base: pb.Base) -> pb.Base:
        """Records a base as it is."""
        with rpc_errors("the registry"):
            return await self.stub.CreateBase(pb.CreateBaseRequest(base=base))

    async def create_adapter(
        self, name: str = "bot", base: str = "tiny", ns: str = "default"
    ) -> pb.Adapter:
        """Creates an adapter of a recorded base."""
        adapter = pb.Adapter(name=adapter_name(ns, name), base=base_name(ns, base))
        with rpc_errors("the registry"):
            return await self.stub.CreateAdapter(pb.CreateAdapterRequest(adapter=adapter))

    async def commit(
        self,
        folder: Path,
        fingerprint: str,
        adapter: str = "bot",
        ns: str = "default",
        **fields: Any,
    ) -> pb.Version:
        """Uploads every file of a folder and commits it as the adapter's next version."""
        files = [describe_file(folder, path) for path in sorted(folder.iterdir())]
        for file in files:
            await self.blobs.upload(folder / file.path, file)
        request = pb.CommitVersionRequest(
            parent=adapter_name(ns, adapter),
            files=files,
            base_fingerprint=fingerprint,
            **{"request_id": uuid.uuid4().hex, **fields},
        )
        with rpc_errors("the registry"):
            return await self.stub.CommitVersion(request)

    async def get_version(self, name: str) -> pb.Version:
        """A version by its name or an alias' name."""
        with rpc_errors("the registry"):
            return await self.stub.GetVersion(pb.GetVersionRequest(name=name))

    async def list_adapters(self, token: str = "", ns: str = "default") -> list[pb.Adapter]:
        """A page of a namespace's adapters."""
        request = pb.ListAdaptersRequest(parent=f"namespaces/{ns}", page_token=token)
        with rpc_errors("the registry"):
            return list((await self.stub.ListAdapters(request)).adapters)

    async def set_alias(self, version: str, alias: str = "production", **fields: Any) -> pb.Alias:
        """Points an alias of the version's adapter at the version."""
        name = alias_name(version.rsplit("/", 2)[0], alias)
        return await self.set_alias_named(name, version, **fields)

    async def set_alias_named(self, name: str, version: str, **fields: Any) -> pb.Alias:
        """Points an alias at a version."""
        with rpc_errors("the registry"):
            return await self.stub.SetAlias(
                pb.SetAliasRequest(name=name, version=version, **fields)
            )

    async def next_of(self, call: WatchCall) -> pb.WatchResponse:
        """The next message of a watch."""
        with rpc_errors("the registry"):
            message = await call.read()
        assert isinstance(message, pb.WatchResponse), "the watch ended"
        return message

    async def first_of_watch(self, after: int = 0, ns: str = "default") -> pb.WatchResponse:
        """The first message of a new watch."""
        call = self.stub.Watch(pb.WatchRequest(parent=f"namespaces/{ns}", after_revision=after))
        try:
            return await self.next_of(call)
        finally:
            call.cancel()


def fetch_text(url: str) -> str:
    """What an HTTP address answers, without proxies."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=60) as answer:
        return str(answer.read().decode())


@asynccontextmanager
async def running_registry(folder: Path, **settings: Any) -> AsyncIterator[RegistryServer]:
    """start_registry() and its end."""
    server = await start_registry(folder, **settings)
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def registry_calls(address: str) -> AsyncIterator[RegistryCalls]:
    """Calls to the registry at an address."""
    async with open_channel(address) as channel:
        yield RegistryCalls(channel)
