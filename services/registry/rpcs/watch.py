"""The RPC that follows changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from graft.registry.v1 import registry_service_pb2 as pb

from services.common.interceptors import Context
from services.registry.convert import messages
from services.registry.convert.events import event_filter
from services.registry.errors import invalid
from services.registry.rpcs.base import RpcGroup


class WatchRpcs(RpcGroup):
    """Changes of everything."""

    async def Watch(
        self, request: pb.WatchRequest, context: Context
    ) -> AsyncIterator[pb.WatchResponse]:
        which = event_filter(request)
        if request.after_revision < 0:
            raise invalid(
                f"after_revision is {request.after_revision}", "Use 0 for all there ever were."
            )
        async with aclosing(self.parts.feed.follow(which, request.after_revision)) as news:
            async for one in news:
                yield messages.watch_message(one)
