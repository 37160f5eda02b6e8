"""RPCs about the ends of adapters, bases and versions: delete, undelete and purge."""

from __future__ import annotations

from graft.registry.v1 import registry_service_pb2 as pb

from services.common.interceptors import Context
from services.registry.catalogue.lives import Mortal
from services.registry.convert.lives import adapter_of, base_of, reason_of, version_of
from services.registry.convert.messages import adapter_message, base_message, version_message
from services.registry.domain import Adapter, Base, Version
from services.registry.rpcs.base import RpcGroup


class LifeRpcs(RpcGroup):
    """Ends, and returns."""

    async def DeleteAdapter(self, request: pb.DeleteAdapterRequest, context: Context) -> pb.Adapter:
        name = adapter_of(request.name)
        return _adapter(await self.parts.lives.delete(name, request.etag, reason_of(request)))

    async def UndeleteAdapter(
        self, request: pb.UndeleteAdapterRequest, context: Context
    ) -> pb.Adapter:
        return _adapter(await self.parts.lives.undelete(adapter_of(request.name)))

    async def PurgeAdapter(self, request: pb.PurgeAdapterRequest, context: Context) -> pb.Adapter:
        return _adapter(await self.parts.lives.purge(adapter_of(request.name), reason_of(request)))

    async def DeleteBase(self, request: pb.DeleteBaseRequest, context: Context) -> pb.Base:
        name = base_of(request.name)
        return _base(await self.parts.lives.delete(name, request.etag, reason_of(request)))

    async def UndeleteBase(self, request: pb.UndeleteBaseRequest, context: Context) -> pb.Base:
        return _base(await self.parts.lives.undelete(base_of(request.name)))

    async def PurgeBase(self, request: pb.PurgeBaseRequest, context: Context) -> pb.Base:
        return _base(await self.parts.lives.purge(base_of(request.name), reason_of(request)))

    async def DeleteVersion(self, request: pb.DeleteVersionRequest, context: Context) -> pb.Version:
        name = version_of(request.name)
        return _version(await self.parts.lives.delete(name, request.etag, reason_of(request)))

    async def UndeleteVersion(
        self, request: pb.UndeleteVersionRequest, context: Context
    ) -> pb.Version:
        return _version(await self.parts.lives.undelete(version_of(request.name)))

    async def PurgeVersion(self, request: pb.PurgeVersionRequest, context: Context) -> pb.Version:
        return _version(await self.parts.lives.purge(version_of(request.name), reason_of(request)))


def _adapter(found: Mortal) -> pb.Adapter:
    assert isinstance(found, Adapter), "asked for by its name"
    return adapter_message(found)


def _base(found: Mortal) -> pb.Base:
    assert isinstance(found, Base), "asked for by its name"
    return base_message(found)


def _version(found: Mortal) -> pb.Version:
    assert isinstance(found, Version), "asked for by its name"
    return version_message(found)
