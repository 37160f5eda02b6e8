"""RPCs about versions: commit, get, list and update."""

from __future__ import annotations

from graft.registry.v1 import registry_service_pb2 as pb

from services.common.interceptors import Context
from services.registry.convert import messages
from services.registry.convert.checks import check_alias, version_number
from services.registry.convert.finding import next_token, version_words, versions_listing
from services.registry.convert.versions import commit_request
from services.registry.domain import Version
from services.registry.rpcs.base import RpcGroup


class VersionRpcs(RpcGroup):
    """Versions of adapters and bases."""

    async def CommitVersion(self, request: pb.CommitVersionRequest, context: Context) -> pb.Version:
        version = await self.parts.committer.commit(commit_request(request))
        return messages.version_message(version)

    async def GetVersion(self, request: pb.GetVersionRequest, context: Context) -> pb.Version:
        if "/aliases/" in request.name:
            check_alias(request.name)
            return await self.parts.lookup.by_alias(request.name)
        version = await self.parts.catalogue.get_version(*version_number(request.name))
        return messages.version_message(version)

    async def ListVersions(
        self, request: pb.ListVersionsRequest, context: Context
    ) -> pb.ListVersionsResponse:
        page = await self.parts.finder.versions(versions_listing(request, self.parts.tokens))
        return pb.ListVersionsResponse(
            versions=map(messages.version_message, page.items),
            next_page_token=next_token(request, self.parts.tokens, page.next_key),
        )

    async def UpdateVersion(self, request: pb.UpdateVersionRequest, context: Context) -> pb.Version:
        changed = await self.parts.updates.update(version_words(request))
        assert isinstance(changed, Version), "asked for by its name"
        return messages.version_message(changed)
