"""Forms, tools, several answers, vectors and counts through the client and the command line's options."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import graft
import pytest

from tests.support.inference import RunningInference, start_inference

TOOL = {"type": "function", "function": {"name": "stop"}}


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[RunningInference]:
    async with start_inference(tmp_path) as running:
        yield running


@pytest.fixture
async def client(service: RunningInference) -> AsyncIterator[graft.Client]:
    async with graft.Client(
        registry="127.0.0.1:1", trainer="127.0.0.1:1", inference=service.server.address
    ) as client:
        yield client


async def test_an_answer_has_the_form_that_is_asked_for(client: graft.Client) -> None:
    schema = {"type": "object", "properties": {"ok": {"const": True}}, "required": ["ok"]}
    answer = await client.generate("tiny", "x", json_schema=schema, max_tokens=40)
    assert json.loads(answer.text) == {"ok": True}
    assert (await client.chat("tiny", "x", choice=["yes", "no"])).text == "no"
    with pytest.raises(graft.InvalidError, match="regex and choice are set"):
        await client.generate("tiny", "x", regex="a", choice=["b"])


async def test_a_tool_that_was_called_can_be_answered(client: graft.Client) -> None:
    answer = await client.chat("tiny", "x", tools=[TOOL], tool_choice="stop", max_tokens=40)
    (call,) = answer.tool_calls
    assert (call.name, call.arguments) == ("stop", "{}")
    assert answer.finish_reason is graft.FinishReason.TOOL_CALLS
    said = {
        "role": "assistant",
        "tool_calls": [{"id": call.id, "function": {"name": "stop", "arguments": call.arguments}}],
    }
    result = {"role": "tool", "content": "done", "tool_call_id": call.id}
    messages: list[dict[str, Any]] = [{"role": "user", "content": "x"}, said, result]
    assert (await client.chat("tiny", messages, tools=[TOOL], max_tokens=4)).text


async def test_several_answers_come_as_one(client: graft.Client) -> None:
    answer = await client.generate("tiny", "x", n=2, seed=1, max_tokens=4)
    assert [each.index for each in (answer, *answer.others)] == [0, 1]


async def test_vectors_and_counts(client: graft.Client) -> None:
    found = await client.embed("tiny", ["a", [97, 98]])
    assert len(found.vectors) == 2
    assert found.prompt_tokens == (2, 2)
    assert found.provenance.base.endswith("/tiny")
    with pytest.raises(graft.InvalidError, match="pooling is 'middle'"):
        await client.embed("tiny", ["a"], pooling="middle")
    assert (await client.count_tokens("tiny", "abc")).tokens == 4
    count = await client.count_tokens("tiny", [{"role": "user", "content": "abc"}], tools=[TOOL])
    assert count.tokens > 4
