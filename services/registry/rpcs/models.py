"""RPCs about adapters and bases: create, get and list."""

from __future__ import annotations

from graft.names import parse_name
from graft.registry.v1 import registry_service_pb2 as pb

from services.common.interceptors import Context
from services.registry.convert import messages
from services.registry.convert.checks import ADAPTER, BASE, NAMESPACE
from services.registry.convert.keys import request_key
from services.registry.convert.models import new_adapter, new_base
from services.registry.pages import make_token, page_limit, read_token
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
        namespace = parse_name(request.parent, NAMESPACE)["namespace"]
        after = read_token("ListAdapters", request.parent, request.page_token)
        page = await self.parts.catalogue.list_adapters(
            namespace, page_limit(request.page_size), after
        )
        return pb.ListAdaptersResponse(
            adapters=map(messages.adapter_message, page.items),
            next_page_token=make_token("ListAdapters", request.parent, page.next_key),
        )

    async def CreateBase(self, request: pb.CreateBaseRequest, context: Context) -> pb.Base:
        return messages.base_message(await self.parts.catalogue.create_base(new_base(request)))

    async def GetBase(self, request: pb.GetBaseRequest, context: Context) -> pb.Base:
        parse_name(request.name, BASE)
        return messages.base_message(await self.parts.catalogue.get_base(request.name))

    async def ListBases(
        self, request: pb.ListBasesRequest, context: Context
    ) -> pb.ListBasesResponse:
        namespace = parse_name(request.parent, NAMESPACE)["namespace"]
        after = read_token("ListBases", request.parent, request.page_token)
        page = await self.parts.catalogue.list_bases(
            namespace, page_limit(request.page_size), after
        )
        return pb.ListBasesResponse(
            bases=map(messages.base_message, page.items),
            next_page_token=make_token("ListBases", request.parent, page.next_key),
        )
