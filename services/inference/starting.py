"""The service while it starts: it listens, so that probes are answered, and refuses calls until it can serve them."""

from __future__ import annotations

from graft.errors import GraftError, Reason
from graft.inference.v1 import bases_pb2 as bases_pb
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1 import rollout_pb2
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceServicer

from services.common.interceptors import Context
from services.inference.bases.rpcs import BaseRpcs
from services.inference.servicer import InferenceServicer

_RETRY_AFTER_S = 5


class StartingServicer(InferenceServiceServicer):
    """Passes every call on to the real servicer, once there is one."""

    def __init__(self) -> None:
        self._real: InferenceServicer | None = None
        self._paused = False
        # Changes of the base; there are none before the service is built.
        self.bases: BaseRpcs | None = None

    def begin(self, real: InferenceServicer) -> None:
        """From now on calls are answered."""
        self._real = real

    def pause(self, paused: bool) -> None:
        """Its engine is being replaced: there is nothing to tell of. Requests for text wait in Answers."""
        self._paused = paused

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        return await self._ready().Generate(request, context)

    async def Chat(self, request: pb.ChatRequest, context: Context) -> pb.GenerateResponse:
        return await self._ready().Chat(request, context)

    async def StreamGenerate(self, request: pb.GenerateRequest, context: Context) -> None:  # type: ignore[override]
        await self._ready().StreamGenerate(request, context)

    async def StreamChat(self, request: pb.ChatRequest, context: Context) -> None:  # type: ignore[override]
        await self._ready().StreamChat(request, context)

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        return await self._ready().Embed(request, context)

    async def CountTokens(
        self, request: pb.CountTokensRequest, context: Context
    ) -> pb.CountTokensResponse:
        return await self._ready().CountTokens(request, context)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        return await self._there().ListModels(request, context)

    async def GetResidency(self, request: pb.GetResidencyRequest, context: Context) -> pb.Residency:
        found = await self._there().GetResidency(request, context)
        if self.bases is not None:
            self.bases.tell(found)
        return found

    async def GetBase(
        self, request: bases_pb.GetBaseRequest, context: Context
    ) -> bases_pb.ServedBase:
        return self._bases().get()

    async def SwitchBase(self, request: bases_pb.SwitchBaseRequest, context: Context) -> None:  # type: ignore[override]
        await self._bases().switch(request, context.write)

    async def CancelBaseSwitch(
        self, request: bases_pb.CancelBaseSwitchRequest, context: Context
    ) -> bases_pb.BaseSwitch:
        return await self._bases().cancel(request)

    def _bases(self) -> BaseRpcs:
        self._ready()
        assert self.bases is not None, "set before the start"
        return self.bases

    def _there(self) -> InferenceServicer:
        if self._paused:
            raise GraftError(
                Reason.UNAVAILABLE,
                "The service changes its base, and no engine runs",
                next_step="Try again in a few seconds; `graft bases served` says how far it is.",
                retry_after_s=_RETRY_AFTER_S,
            )
        return self._ready()

    async def ListRollouts(
        self, request: rollout_pb2.ListRolloutsRequest, context: Context
    ) -> rollout_pb2.ListRolloutsResponse:
        return await self._ready().ListRollouts(request, context)

    def _ready(self) -> InferenceServicer:
        if self._real is None:
            raise GraftError(
                Reason.UNAVAILABLE,
                "The service is starting",
                next_step="Try again in a few seconds; its health check says when it is ready.",
                retry_after_s=_RETRY_AFTER_S,
            )
        return self._real
