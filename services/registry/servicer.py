"""The RPCs of RegistryService: takes the request apart, asks, and puts the answer together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from graft.channel import ACTOR_HEADER
from graft.names import parse_name
from graft.registry.v1 import registry_service_pb2 as pb
from graft.registry.v1 import registry_service_pb2_grpc as rpc

from services.common.interceptors import Context
from services.registry import convert
from services.registry.catalogue.base import Catalogue
from services.registry.commit import CommitRequest, VersionCommitter
from services.registry.errors import invalid
from services.registry.pages import make_token, page_limit, read_token
from services.registry.watch import ChangeFeed

_NAMESPACE = "namespaces/{namespace}"


class RegistryServicer(rpc.RegistryServiceServicer):
    """Answers RegistryService.

    Args:
        catalogue: what exists.
        committer: makes versions.
        feed: tells of changes.
    """

    def __init__(self, catalogue: Catalogue, committer: VersionCommitter, feed: ChangeFeed) -> None:
        self._catalogue, self._committer, self._feed = catalogue, committer, feed

    async def CreateAdapter(self, request: pb.CreateAdapterRequest, context: Context) -> pb.Adapter:
        adapter = await self._catalogue.create_adapter(
            convert.new_adapter(request), convert.request_key(request)
        )
        return convert.adapter_message(adapter)

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Context) -> pb.Adapter:
        parse_name(request.name, convert.ADAPTER)
        return convert.adapter_message(await self._catalogue.get_adapter(request.name))

    async def ListAdapters(
        self, request: pb.ListAdaptersRequest, context: Context
    ) -> pb.ListAdaptersResponse:
        namespace = parse_name(request.parent, _NAMESPACE)["namespace"]
        after = read_token("ListAdapters", request.parent, request.page_token)
        page = await self._catalogue.list_adapters(namespace, page_limit(request.page_size), after)
        return pb.ListAdaptersResponse(
            adapters=map(convert.adapter_message, page.items),
            next_page_token=make_token("ListAdapters", request.parent, page.next_key),
        )

    async def CreateBase(self, request: pb.CreateBaseRequest, context: Context) -> pb.Base:
        return convert.base_message(await self._catalogue.create_base(convert.new_base(request)))

    async def GetBase(self, request: pb.GetBaseRequest, context: Context) -> pb.Base:
        parse_name(request.name, convert.BASE)
        return convert.base_message(await self._catalogue.get_base(request.name))

    async def ListBases(
        self, request: pb.ListBasesRequest, context: Context
    ) -> pb.ListBasesResponse:
        namespace = parse_name(request.parent, _NAMESPACE)["namespace"]
        after = read_token("ListBases", request.parent, request.page_token)
        page = await self._catalogue.list_bases(namespace, page_limit(request.page_size), after)
        return pb.ListBasesResponse(
            bases=map(convert.base_message, page.items),
            next_page_token=make_token("ListBases", request.parent, page.next_key),
        )

    async def CommitVersion(self, request: pb.CommitVersionRequest, context: Context) -> pb.Version:
        parse_name(request.parent, convert.ADAPTER)
        version = await self._committer.commit(
            CommitRequest(
                adapter=request.parent,
                files=convert.files(request.files),
                base_fingerprint=request.base_fingerprint,
                lineage=convert.lineage(request.lineage),
                key=convert.request_key(request),
            )
        )
        return convert.version_message(version)

    async def GetVersion(self, request: pb.GetVersionRequest, context: Context) -> pb.Version:
        if "/aliases/" in request.name:
            parse_name(request.name, convert.ALIAS)
            version = await self._catalogue.get_version_by_alias(request.name)
        else:
            version = await self._catalogue.get_version(*convert.version_number(request.name))
        return convert.version_message(version)

    async def ListVersions(
        self, request: pb.ListVersionsRequest, context: Context
    ) -> pb.ListVersionsResponse:
        parse_name(request.parent, convert.ADAPTER)
        after = read_token("ListVersions", request.parent, request.page_token, is_number=True)
        page = await self._catalogue.list_versions(
            request.parent, page_limit(request.page_size), after
        )
        return pb.ListVersionsResponse(
            versions=map(convert.version_message, page.items),
            next_page_token=make_token("ListVersions", request.parent, page.next_key),
        )

    async def GetAlias(self, request: pb.GetAliasRequest, context: Context) -> pb.Alias:
        parse_name(request.name, convert.ALIAS)
        return convert.alias_message(await self._catalogue.get_alias(request.name))

    async def ListAliases(
        self, request: pb.ListAliasesRequest, context: Context
    ) -> pb.ListAliasesResponse:
        whole = request.parent.endswith("/adapters/-")
        if whole:
            parent = request.parent.removesuffix("/adapters/-")
            namespace = parse_name(parent, _NAMESPACE)["namespace"]
        else:
            namespace = parse_name(request.parent, convert.ADAPTER)["namespace"]
        aliases, revision = await self._catalogue.list_aliases(
            namespace, None if whole else request.parent
        )
        return pb.ListAliasesResponse(
            aliases=map(convert.alias_message, aliases), revision=revision
        )

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.Alias:
        move = convert.alias_move(request, _actor(context))
        return convert.alias_message(await self._catalogue.move_alias(move))

    async def RollbackAlias(self, request: pb.RollbackAliasRequest, context: Context) -> pb.Alias:
        move = convert.alias_rollback(request, _actor(context))
        return convert.alias_message(await self._catalogue.move_alias(move))

    async def ListAliasHistory(
        self, request: pb.ListAliasHistoryRequest, context: Context
    ) -> pb.ListAliasHistoryResponse:
        parse_name(request.name, convert.ALIAS)
        after = read_token("ListAliasHistory", request.name, request.page_token, is_number=True)
        page = await self._catalogue.list_alias_history(
            request.name, page_limit(request.page_size), after
        )
        return pb.ListAliasHistoryResponse(
            aliases=map(convert.alias_message, page.items),
            next_page_token=make_token("ListAliasHistory", request.name, page.next_key),
        )

    async def Watch(
        self, request: pb.WatchRequest, context: Context
    ) -> AsyncIterator[pb.WatchResponse]:
        namespace: str | None = None
        if request.parent != "namespaces/-":
            namespace = parse_name(request.parent, _NAMESPACE)["namespace"]
        if request.after_revision < 0:
            raise invalid(
                f"after_revision is {request.after_revision}", "Use 0 for all there ever were."
            )
        async with aclosing(self._feed.follow(namespace, request.after_revision)) as news:
            async for one in news:
                yield convert.watch_message(one)


def _actor(context: Context) -> str:
    actor = dict(context.invocation_metadata() or ()).get(ACTOR_HEADER, "")
    text = actor.decode(errors="replace") if isinstance(actor, bytes) else actor
    convert.check_text(ACTOR_HEADER, text)
    return text
