"""RPCs about adapters and bases: create, get, list and update."""

from __future__ import annotations

from graft.names import parse_name
from graft.registry.v1 import registry_service_pb2 as pb

from services.common.interceptors import Context
from services.registry.convert import messages
from services.registry.convert.checks import ADAPTER, BASE
from services.registry.convert.finding import (
    adapter_words,
    adapters_listing,
    base_words,
    bases_listing,
    next_token,
)
from services.registry.convert.keys import request_key
from services.registry.convert.models import new_adapter, new_base
from services.registry.domain import Adapter, Base
from services.registry.rpcs.base import RpcGroup


class ModelRpcs(RpcGroup):
    """Adapters and bases."""

    async def CreateAdapter(self, request: pb.CreateAdapterRequest, context: Context) -> pb.Adapter:
        adapter = await self.parts.catalogue.create_adapter(
            new_adapter(request), request_key(request)
        )
        return messages.adapter_message(adapter)

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Context) -> pb.Adapter:
        parse_name(request.name, ADAPTER)
        return messages.adapter_message(await self.parts.catalogue.get_adapter(request.name))

    async def ListAdapters(
        self, request: pb.ListAdaptersRequest, context: Context
    ) -> pb.ListAdaptersResponse:
        page = await self.parts.finder.adapters(adapters_listing(request, self.parts.tokens))
        return pb.ListAdaptersResponse(
            adapters=map(messages.adapter_message, page.items),
            next_page_token=next_token(request, self.parts.tokens, page.next_key),
        )

    async def UpdateAdapter(self, request: pb.UpdateAdapterRequest, context: Context) -> pb.Adapter:
        changed = await self.parts.updates.update(adapter_words(request))
        assert isinstance(changed, Adapter), "asked for by its name"
        return messages.adapter_message(changed)

    async def CreateBase(self, request: pb.CreateBaseRequest, context: Context) -> pb.Base:
        return messages.base_message(await self.parts.catalogue.create_base(new_base(request)))

    async def GetBase(self, request: pb.GetBaseRequest, context: Context) -> pb.Base:
        parse_name(request.name, BASE)
        return messages.base_message(await self.parts.catalogue.get_base(request.name))

    async def ListBases(
        self, request: pb.ListBasesRequest, context: Context
    ) -> pb.ListBasesResponse:
        page = await self.parts.finder.bases(bases_listing(request, self.parts.tokens))
        return pb.ListBasesResponse(
            bases=map(messages.base_message, page.items),
            next_page_token=next_token(request, self.parts.tokens, page.next_key),
        )

    async def UpdateBase(self, request: pb.UpdateBaseRequest, context: Context) -> pb.Base:
        changed = await self.parts.updates.update(base_words(request))
        assert isinstance(changed, Base), "asked for by its name"
        return messages.base_message(changed)
