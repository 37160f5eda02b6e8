"""RPCs about aliases: get, list, move, roll back, and their history."""

from __future__ import annotations

from graft.names import namespace_of, parse_name
from graft.registry.v1 import registry_service_pb2 as pb

from services.common.caller import current_caller
from services.common.interceptors import Context
from services.registry.convert import messages
from services.registry.convert.aliases import alias_advance, alias_move, alias_rollback
from services.registry.convert.checks import NAMESPACE, check_alias, check_parent, check_text
from services.registry.convert.keys import request_key
from services.registry.pages import page_limit
from services.registry.rpcs.base import RpcGroup


class AliasRpcs(RpcGroup):
    """Aliases of adapters and bases."""

    async def GetAlias(self, request: pb.GetAliasRequest, context: Context) -> pb.Alias:
        check_alias(request.name)
        return messages.alias_message(await self.parts.catalogue.get_alias(request.name))

    async def ListAliases(
        self, request: pb.ListAliasesRequest, context: Context
    ) -> pb.ListAliasesResponse:
        whole = request.parent.endswith("/adapters/-")
        if whole:
            parent = request.parent.removesuffix("/adapters/-")
            namespace = parse_name(parent, NAMESPACE)["namespace"]
        else:
            namespace = namespace_of(check_parent(request.parent))
        aliases, revision = await self.parts.catalogue.list_aliases(
            namespace, None if whole else request.parent
        )
        return pb.ListAliasesResponse(
            aliases=map(messages.alias_message, aliases), revision=revision
        )

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.Alias:
        move = alias_move(request, current_caller().actor)
        key = None if move.validate_only else request_key(request)
        return messages.alias_message(await self.parts.catalogue.move_alias(move, key))

    async def RollbackAlias(self, request: pb.RollbackAliasRequest, context: Context) -> pb.Alias:
        move = alias_rollback(request, current_caller().actor)
        key = request_key(request)
        return messages.alias_message(await self.parts.catalogue.move_alias(move, key))

    async def AdvanceRollout(self, request: pb.AdvanceRolloutRequest, context: Context) -> pb.Alias:
        move = alias_advance(request, current_caller().actor)
        return messages.alias_message(await self.parts.catalogue.move_alias(move))

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Context) -> pb.Alias:
        check_text("reason", request.reason)
        gone = await self.parts.catalogue.delete_alias(
            check_alias(request.name), request.etag or None, request.reason
        )
        return messages.alias_message(gone)

    async def ListAliasHistory(
        self, request: pb.ListAliasHistoryRequest, context: Context
    ) -> pb.ListAliasHistoryResponse:
        check_alias(request.name)
        after = self.parts.tokens.read("ListAliasHistory", request.name, request.page_token)
        page = await self.parts.catalogue.list_alias_history(
            request.name, page_limit(request.page_size), after
        )
        return pb.ListAliasHistoryResponse(
            aliases=map(messages.alias_message, page.items),
            next_page_token=self.parts.tokens.make("ListAliasHistory", request.name, page.next_key),
        )
