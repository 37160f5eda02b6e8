"""The RPCs of the inference service; each converts, asks the domain, and converts back."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceServicer

from services.common.interceptors import Context
from services.inference import convert
from services.inference.answers import Answers, Question
from services.inference.domain import Base
from services.inference.follower import Follower
from services.inference.models import Models
from services.inference.prompts import LONG_BYTES, Prompts
from services.inference.residency import Residency


class InferenceServicer(InferenceServiceServicer):
    """Streams are written to the context itself: no generator stands between engine and wire."""

    def __init__(
        self,
        answers: Answers,
        prompts: Prompts,
        models: Models,
        residency: Residency,
        follower: Follower,
        base: Base,
        stalled_after_s: float,
    ) -> None:
        self._stalled_after_s = stalled_after_s
        self._answers, self._prompts, self._models = answers, prompts, models
        self._residency, self._follower, self._base = residency, follower, base

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        return await self._whole(convert.generate_question(request), context)

    async def Chat(self, request: pb.ChatRequest, context: Context) -> pb.GenerateResponse:
        return await self._whole(await self._chat_question(request), context)

    async def StreamGenerate(self, request: pb.GenerateRequest, context: Context) -> None:  # type: ignore[override]
        await self._stream(convert.generate_question(request), context)

    async def StreamChat(self, request: pb.ChatRequest, context: Context) -> None:  # type: ignore[override]
        await self._stream(await self._chat_question(request), context)

    async def _chat_question(self, request: pb.ChatRequest) -> Question:
        if request.ByteSize() <= LONG_BYTES:
            return convert.chat_question(request)
        self._prompts.check_messages(len(request.messages))
        return await asyncio.to_thread(convert.chat_question, request)

    async def _whole(self, question: Question, context: Context) -> pb.GenerateResponse:
        async with self._answers.admit(question, context.time_remaining()) as answer:
            message = convert.response(await answer.whole())
            message.provenance.CopyFrom(convert.provenance(answer.provenance))
            message.usage.prompt_tokens = answer.prompt_tokens
            message.usage.completion_tokens = answer.completion_tokens
            return message

    async def _stream(self, question: Question, context: Context) -> None:
        loop = asyncio.get_running_loop()
        admitted = self._answers.admit(question, context.time_remaining())
        async with admitted as answer, aclosing(answer.parts()) as parts:
            provenance = convert.provenance(answer.provenance)
            first = True
            async for delta in parts:
                message = convert.response(delta)
                if first or delta.finish is not None:
                    message.provenance.CopyFrom(provenance)
                    first = False
                if delta.finish is not None:
                    message.usage.prompt_tokens = answer.prompt_tokens
                    message.usage.completion_tokens = answer.completion_tokens
                waiting = loop.call_later(self._stalled_after_s, answer.stalled)
                try:
                    await context.write(message)
                finally:
                    waiting.cancel()

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        models = [
            pb.Model(
                reference=model.reference,
                version=model.version,
                version_digest=model.digest,
                resident=model.resident,
            )
            for model in self._models.list()
        ]
        return pb.ListModelsResponse(models=models)

    async def GetResidency(self, request: pb.GetResidencyRequest, context: Context) -> pb.Residency:
        adapters = [convert.resident_adapter(each) for each in self._residency.instances()]
        adapters += [convert.failed_adapter(each) for each in self._residency.failures()]
        return pb.Residency(
            base=self._base.name,
            base_fingerprint=self._base.fingerprint,
            adapters=adapters,
            revision=self._follower.revision,
        )
