"""The service while it starts: it listens, so that probes are answered, and refuses calls until it can serve them."""

from __future__ import annotations

from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceServicer

from services.common.interceptors import Context
from services.inference.servicer import InferenceServicer

_RETRY_AFTER_S = 5


class StartingServicer(InferenceServiceServicer):
    """Passes every call on to the real servicer, once there is one."""

    def __init__(self) -> None:
        self._real: InferenceServicer | None = None

    def begin(self, real: InferenceServicer) -> None:
        """From now on calls are answered."""
        self._real = real

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        return await self._ready().Generate(request, context)

    async def Chat(self, request: pb.ChatRequest, context: Context) -> pb.GenerateResponse:
        return await self._ready().Chat(request, context)

    async def StreamGenerate(self, request: pb.GenerateRequest, context: Context) -> None:  # type: ignore[override]
        await self._ready().StreamGenerate(request, context)

    async def StreamChat(self, request: pb.ChatRequest, context: Context) -> None:  # type: ignore[override]
        await self._ready().StreamChat(request, context)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        return await self._ready().ListModels(request, context)

    async def GetResidency(self, request: pb.GetResidencyRequest, context: Context) -> pb.Residency:
        return await self._ready().GetResidency(request, context)

    def _ready(self) -> InferenceServicer:
        if self._real is None:
            raise GraftError(
                Reason.UNAVAILABLE,
                "The service is starting",
                next_step="Try again in a few seconds; its health check says when it is ready.",
                retry_after_s=_RETRY_AFTER_S,
            )
        return self._real
