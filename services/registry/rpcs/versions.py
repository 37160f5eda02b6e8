"""RPCs about versions: commit, get and list."""

from __future__ import annotations

from graft.registry.v1 import registry_service_pb2 as pb

from services.common.interceptors import Context
from services.registry.convert import messages
from services.registry.convert.checks import check_alias, check_parent, version_number
from services.registry.convert.versions import commit_request
from services.registry.pages import make_token, page_limit, read_token
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
        check_parent(request.parent)
        after = read_token("ListVersions", request.parent, request.page_token, is_number=True)
        page = await self.parts.catalogue.list_versions(
            request.parent, page_limit(request.page_size), after
        )
        return pb.ListVersionsResponse(
            versions=map(messages.version_message, page.items),
            next_page_token=make_token("ListVersions", request.parent, page.next_key),
        )
