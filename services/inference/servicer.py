"""The RPCs of the inference service; each converts, asks the domain, and converts back."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1 import rollout_pb2

from services.common.interceptors import Context
from services.inference.answers import Answers
from services.inference.convert import requests, responses
from services.inference.domain import Base
from services.inference.embeddings import embed
from services.inference.follower import Follower
from services.inference.models import Models
from services.inference.prompts import LONG_BYTES, Prompts
from services.inference.questions import Question
from services.inference.residency import Residency
from services.inference.rollout.controller import Rollouts
from services.inference.rollout.convert import rollout_status


class InferenceServicer:
    """What one base answers; starting.py stands before it.

    Streams are written to the context itself: no generator stands between engine and wire.
    """

    def __init__(
        self,
        answers: Answers,
        prompts: Prompts,
        models: Models,
        residency: Residency,
        follower: Follower,
        base: Base,
        stalled_after_s: float,
        rollouts: Rollouts,
    ) -> None:
        self._stalled_after_s, self._rollouts = stalled_after_s, rollouts
        self._answers, self._prompts, self._models = answers, prompts, models
        self._residency, self._follower, self._base = residency, follower, base

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        return await self._whole(requests.generate_question(request), context)

    async def Chat(self, request: pb.ChatRequest, context: Context) -> pb.GenerateResponse:
        return await self._whole(await self._chat_question(request), context)

    async def StreamGenerate(self, request: pb.GenerateRequest, context: Context) -> None:
        await self._stream(requests.generate_question(request), context)

    async def StreamChat(self, request: pb.ChatRequest, context: Context) -> None:
        await self._stream(await self._chat_question(request), context)

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        model, inputs, pooling, priority = requests.embed_inputs(request)
        made = await embed(
            self._answers,
            model,
            inputs,
            pooling=pooling,
            priority=priority,
            time_remaining_s=context.time_remaining(),
        )
        return responses.embed_response(made)

    async def CountTokens(
        self, request: pb.CountTokensRequest, context: Context
    ) -> pb.CountTokensResponse:
        self._prompts.check_messages(len(request.messages))
        model, prompt = requests.counted(request)
        return responses.count_response(await self._answers.count_tokens(model, prompt))

    async def _chat_question(self, request: pb.ChatRequest) -> Question:
        if request.ByteSize() <= LONG_BYTES:
            return requests.chat_question(request)
        self._prompts.check_messages(len(request.messages))
        return await asyncio.to_thread(requests.chat_question, request)

    async def _whole(self, question: Question, context: Context) -> pb.GenerateResponse:
        async with self._answers.admit(question, context.time_remaining()) as answer:
            message = responses.whole_response(await answer.wholes())
            message.provenance.CopyFrom(responses.provenance(answer.provenance))
            message.usage.prompt_tokens = answer.prompt_tokens
            message.usage.completion_tokens = answer.completion_tokens
            responses.attest(message, answer.attest())
            return message

    async def _stream(self, question: Question, context: Context) -> None:
        loop = asyncio.get_running_loop()
        admitted = self._answers.admit(question, context.time_remaining())
        async with admitted as answer, aclosing(answer.parts()) as parts:
            provenance = responses.provenance(answer.provenance)
            first, unfinished = True, question.n
            async for delta in parts:
                message = responses.response(delta)
                if delta.finish is not None:
                    unfinished -= 1
                if first or not unfinished:
                    message.provenance.CopyFrom(provenance)
                    first = False
                if not unfinished:
                    message.usage.prompt_tokens = answer.prompt_tokens
                    message.usage.completion_tokens = answer.completion_tokens
                    responses.attest(message, answer.attest())
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
                engine=model.engine,
                blend=model.blend,
                base=self._base.name,
                base_version=self._base.version,
            )
            for model in self._models.list()
        ]
        return pb.ListModelsResponse(models=models)

    async def GetResidency(self, request: pb.GetResidencyRequest, context: Context) -> pb.Residency:
        adapters = [responses.resident_adapter(each) for each in self._residency.instances()]
        adapters += [responses.failed_adapter(each) for each in self._residency.failures()]
        limits = self._residency.limits
        return pb.Residency(
            base=self._base.name,
            base_fingerprint=self._base.fingerprint,
            adapters=adapters,
            revision=self._follower.revision,
            base_version=self._base.version,
            base_version_digest=self._base.version_digest,
            base_quantization=self._base.quantization,
            slot_room=limits.room,
            slot_room_taken=self._residency.room_taken(),
            page_rank=limits.page_rank,
        )

    async def ListRollouts(
        self, request: rollout_pb2.ListRolloutsRequest, context: Context
    ) -> rollout_pb2.ListRolloutsResponse:
        now_s = self._rollouts.now_s()
        return rollout_pb2.ListRolloutsResponse(
            rollouts=[rollout_status(here, now_s) for here in self._rollouts.statuses()]
        )
