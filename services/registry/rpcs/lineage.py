"""The RPC that tells what was made from what."""

from __future__ import annotations

from graft.registry.v1 import registry_service_pb2 as pb

from services.common.interceptors import Context
from services.registry.convert.lineage import lineage_message, lineage_request
from services.registry.rpcs.base import RpcGroup


class LineageRpcs(RpcGroup):
    """Where things come from and what became of them."""

    async def GetLineage(
        self, request: pb.GetLineageRequest, context: Context
    ) -> pb.GetLineageResponse:
        return lineage_message(await self.parts.lineage.around(*lineage_request(request)))
