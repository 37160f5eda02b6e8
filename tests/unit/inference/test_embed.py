"""Vectors of texts and counts of tokens, as a client of the service sees them."""

from __future__ import annotations

import asyncio
import math

from graft.errors import Reason
from graft.inference.v1 import inference_service_pb2 as pb

from services.inference.engines.base import Engine
from tests.support.inference import RunningInference
from tests.support.waiting import eventually
from tests.unit.inference.refusals import refusal


def texts(
    *inputs: str, model: str = "tiny", pooling: pb.Pooling.ValueType = pb.POOLING_LAST
) -> pb.EmbedRequest:
    given = [pb.EmbedInput(text=each) for each in inputs]
    return pb.EmbedRequest(model=model, inputs=given, pooling=pooling)


async def test_every_text_has_a_vector_of_length_one(service: RunningInference) -> None:
    answer = await service.stub.Embed(texts("a", "bb", "a"))
    vectors = [tuple(each.values) for each in answer.embeddings]
    assert vectors[0] == vectors[2] != vectors[1]
    assert all(math.isclose(math.hypot(*each), 1, abs_tol=1e-6) for each in vectors)
    assert [each.prompt_tokens for each in answer.embeddings] == [2, 3, 2]
    assert answer.usage.prompt_tokens == 7
    mean = await service.stub.Embed(texts("a", pooling=pb.POOLING_MEAN))
    assert tuple(mean.embeddings[0].values) != vectors[0]


async def test_all_vectors_of_a_call_are_one_versions_though_the_alias_moves(
    service: RunningInference,
) -> None:
    first, second = await service.publish("bot", "one", "two")
    await service.promote("bot", 1)
    wanted = await service.stub.Embed(texts("a", "b", "c", model="bot:1"))
    service.fake.hold(after_tokens=0)
    asking = asyncio.ensure_future(service.stub.Embed(texts("a", "b", "c", model="bot")))
    await eventually(lambda: service.engine.unfinished() == 1, "the first text")
    await service.promote("bot", 2)

    async def moved() -> bool:
        models = await service.stub.ListModels(pb.ListModelsRequest())
        return any(each.version == second.name for each in models.models if each.reference == "bot")

    await eventually(moved, "the alias")
    await service.fake.release()
    answer = await asking
    assert answer.provenance.version == first.name
    assert [each.values for each in answer.embeddings] == [
        each.values for each in wanted.embeddings
    ]


async def test_a_wrong_text_is_named_and_no_vector_is_made_of_the_others(
    service: RunningInference,
) -> None:
    too_long = await refusal(service.stub.Embed(texts("a", "b" * 600, "c")))
    assert too_long.reason is Reason.PROMPT_TOO_LONG
    assert too_long.message.startswith("inputs[1]: ")
    empty = await refusal(service.stub.Embed(texts("a", "")))
    assert (empty.reason, empty.metadata["field"]) == (Reason.INVALID_REQUEST, "inputs[1]")
    nothing = await refusal(service.stub.Embed(texts()))
    assert nothing.metadata["field"] == "inputs"
    unset = pb.EmbedRequest(model="tiny", inputs=[pb.EmbedInput()])
    assert (await refusal(service.stub.Embed(unset))).metadata["field"] == "inputs[0]"
    nobody = await refusal(service.stub.Embed(texts("a", model="nobody")))
    assert nobody.reason is Reason.ADAPTER_NOT_FOUND
    assert service.engine.unfinished() == 0


async def test_an_engine_without_hidden_states_says_what_to_do(service: RunningInference) -> None:
    async def embed(*_: object, **__: object) -> None:
        await Engine.embed(service.fake, "r", [1], None, None)  # type: ignore[arg-type]

    service.fake.embed = embed  # type: ignore[assignment,method-assign]
    error = await refusal(service.stub.Embed(texts("a")))
    assert error.reason is Reason.NOT_SUPPORTED
    assert error.next_step


async def test_a_count_is_what_an_answer_would_take_and_loads_nothing(
    service: RunningInference,
) -> None:
    (version,) = await service.publish("bot", "one")
    plain = await service.stub.CountTokens(pb.CountTokensRequest(model="bot:1", prompt="hello"))
    assert (plain.tokens, plain.max_context_tokens) == (6, 512)
    assert plain.provenance.version == version.name
    messages = [pb.ChatMessage(role="user", content="hi")]
    count = await service.stub.CountTokens(pb.CountTokensRequest(model="bot:1", messages=messages))
    assert not service.fake.loaded
    answer = await service.stub.Chat(pb.ChatRequest(model="bot:1", messages=messages))
    assert count.tokens == answer.usage.prompt_tokens
    nothing = await refusal(service.stub.CountTokens(pb.CountTokensRequest(model="tiny")))
    assert nothing.metadata["field"] == "messages"
