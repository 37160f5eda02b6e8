"""Text through the client."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import graft
import pytest
from graft.inference.v1 import inference_service_pb2 as pb

from tests.support.fakes import FakeInference


async def test_an_answer_names_the_version_that_made_it(client: graft.Client) -> None:
    answer = await client.generate("bot", "hello there")
    assert answer.text == "hello there"
    assert answer.provenance is not None
    assert answer.provenance.version == "namespaces/default/adapters/bot/versions/2"
    assert answer.finish_reason is graft.FinishReason.STOP
    assert answer.usage == graft.Usage(prompt_tokens=1, completion_tokens=2)


async def test_what_is_streamed_is_what_is_answered_at_once(client: graft.Client) -> None:
    pieces = [piece async for piece in client.stream("bot", "one two three")]
    assert "".join(piece.text for piece in pieces) == "one two three"
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason is graft.FinishReason.STOP


async def test_leaving_a_stream_aborts_it_at_the_engine(
    client: graft.Client, inference: FakeInference
) -> None:
    async with aclosing(client.stream("endless", "again")) as stream:
        await anext(stream)
    async with asyncio.timeout(60):
        await inference.aborted.wait()


async def test_sampling_reaches_the_service_and_what_is_left_out_stays_left_out(
    client: graft.Client, inference: FakeInference
) -> None:
    await client.generate("bot", "x", max_tokens=5, temperature=0.0, stop="\n")
    params = inference.requests[0].sampling
    assert params == pb.SamplingParams(max_tokens=5, temperature=0.0, stop=["\n"])
    assert params.HasField("temperature")
    assert not params.HasField("top_p")


async def test_token_ids_are_a_prompt_too(client: graft.Client, inference: FakeInference) -> None:
    await client.generate("bot", [1, 2, 3])
    request = inference.requests[0]
    assert isinstance(request, pb.GenerateRequest)
    assert list(request.prompt_token_ids.ids) == [1, 2, 3]


async def test_a_text_is_a_conversation_of_one_message(
    client: graft.Client, inference: FakeInference
) -> None:
    await client.chat("bot", "hi")
    await client.chat(
        "bot",
        [
            {"role": "assistant", "tool_calls": [{"name": "find", "arguments": {"a": 1}}]},
            {"role": "tool", "content": "42"},
        ],
        tools=[{"type": "function"}],
    )
    first, second = inference.requests
    assert isinstance(first, pb.ChatRequest)
    assert isinstance(second, pb.ChatRequest)
    assert (first.messages[0].role, first.messages[0].content) == ("user", "hi")
    assert second.messages[0].tool_calls[0].arguments_json == '{"a": 1}'
    assert list(second.tools_json) == ['{"type": "function"}']


async def test_a_message_with_an_unknown_field_is_named(client: graft.Client) -> None:
    with pytest.raises(graft.InvalidError, match="Message 2"):
        await client.chat("bot", [{"role": "user", "content": "a"}, {"rolle": "user"}])


async def test_a_sampling_parameter_of_the_wrong_type_is_refused(client: graft.Client) -> None:
    with pytest.raises(graft.InvalidError, match="sampling parameters") as caught:
        await client.generate("bot", "x", max_tokens="many")  # type: ignore[arg-type]
    assert "max_tokens, temperature" in caught.value.next_step


async def test_the_services_error_arrives_with_its_reason_and_next_step(
    client: graft.Client,
) -> None:
    with pytest.raises(graft.NotFoundError, match="no model nobody") as caught:
        [piece async for piece in client.stream("nobody", "x")]
    assert caught.value.reason is graft.Reason.MODEL_NOT_FOUND
    assert caught.value.next_step == "See `graft models`."


async def test_a_request_id_travels(client: graft.Client, inference: FakeInference) -> None:
    await client.generate("bot", "x", request_id="mine")
    await client.generate("bot", "x")
    assert inference.metadata[0]["x-request-id"] == "mine"
    assert inference.metadata[1]["x-request-id"] not in ("", "mine")


async def test_models_and_residency_are_plain_values(client: graft.Client) -> None:
    models = await client.models()
    assert [model.reference for model in models] == ["tiny", "bot@production"]
    assert models[0].version is None
    held = (await client.residency()).adapters[0]
    assert (held.state, held.size_bytes) == (graft.ResidencyState.READY, 2048)
