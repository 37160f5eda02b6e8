"""Tools, structured answers and embeddings through OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from services.inference.engines.base import Engine, Structure
from tests.support.inference import start_inference
from tests.unit.inference.http.conftest import client_of
from tests.unit.inference.http.scripted import ScriptedEngine

ASK: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "where is order 7?"}],
}
FIND: Any = {
    "type": "function",
    "function": {
        "name": "find",
        "parameters": {"type": "object", "properties": {"order": {"type": "integer"}}},
    },
}
WAIT: Any = {"type": "function", "function": {"name": "wait", "parameters": {"type": "object"}}}
CALLS = '[{"name": "find", "parameters": {"order": 7}}, {"name": "wait", "parameters": {}}]'
SCHEMA = {"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"]}


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def client(tmp_path: Path, engine: ScriptedEngine) -> AsyncIterator[openai.AsyncOpenAI]:
    async with start_inference(tmp_path, engine=engine) as service, client_of(service) as made:
        yield made


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_calls_of_tools_have_ids_names_and_arguments(
    client: openai.AsyncOpenAI, engine: ScriptedEngine, choice: Any
) -> None:
    engine.says = CALLS
    answer = await client.chat.completions.create(**ASK, tools=[FIND, WAIT], tool_choice=choice)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls] == [
        ("find", {"order": 7}),
        ("wait", {}),
    ]  # fmt: skip
    first, second = (call.id for call in message.tool_calls)
    assert first != second
    # The client's own message goes back as it is, with a result.
    engine.says = "on its way"
    turns: list[ChatCompletionMessageParam] = [
        *ASK["messages"],
        cast(ChatCompletionMessageParam, message.to_dict()),
        {"role": "tool", "tool_call_id": first, "content": "shipped"},
        {"role": "tool", "tool_call_id": second, "content": "done"},
    ]
    last = await client.chat.completions.create(
        model="tiny", messages=turns, tools=[FIND, WAIT], tool_choice="none"
    )
    assert last.choices[0].message.content == "on its way"
    assert last.choices[0].finish_reason == "stop"


async def test_calls_are_streamed_in_pieces(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.says = CALLS
    found: dict[int, dict[str, str]] = {}
    finishes = []
    stream = await client.chat.completions.create(
        **ASK, tools=[FIND, WAIT], tool_choice="required", stream=True
    )
    async for chunk in stream:
        choice = chunk.choices[0]
        assert not choice.delta.content
        finishes.append(choice.finish_reason)
        for part in choice.delta.tool_calls or ():
            call = found.setdefault(part.index, {"id": "", "name": "", "arguments": ""})
            call["id"] += part.id or ""
            call["name"] += part.function.name or ""
            call["arguments"] += part.function.arguments or ""
    assert [each["name"] for each in found.values()] == ["find", "wait"]
    assert [json.loads(each["arguments"]) for each in found.values()] == [{"order": 7}, {}]
    assert len({each["id"] for each in found.values()} - {""}) == 2
    assert finishes[-1] == "tool_calls"


async def test_the_clients_stream_helper_puts_calls_together(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.says = '{"order": 7}'
    named: Any = {"type": "function", "function": {"name": "find"}}
    async with client.chat.completions.stream(
        **ASK, tools=[FIND], tool_choice=named, stream_options={"include_usage": True}
    ) as stream:
        events = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in events
    (call,) = final.choices[0].message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("find", '{"order": 7}')
    assert final.usage is not None


STRUCTURES = [
    ({"response_format": {"type": "json_object"}}, Structure(json_object=True)),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "o", "schema": SCHEMA}}},
        Structure(json_schema=json.dumps(SCHEMA)),
    ),
    ({"structured_outputs": {"json": SCHEMA}}, Structure(json_schema=json.dumps(SCHEMA))),
    ({"structured_outputs": {"regex": "[0-9]+"}}, Structure(regex="[0-9]+")),
    ({"structured_outputs": {"choice": ["a", "b"]}}, Structure(choice=("a", "b"))),
    ({"structured_outputs": {"grammar": 'root ::= "a"'}}, Structure(grammar='root ::= "a"')),
    ({"guided_json": json.dumps(SCHEMA)}, Structure(json_schema=json.dumps(SCHEMA))),
    ({"guided_regex": "a"}, Structure(regex="a")),
    ({"guided_choice": ["a"]}, Structure(choice=("a",))),
    ({"guided_grammar": 'root ::= "a"'}, Structure(grammar='root ::= "a"')),
]  # fmt: skip


@pytest.mark.parametrize(("given", "structure"), STRUCTURES)
async def test_the_form_of_an_answer_can_be_said_in_each_dialect(
    client: openai.AsyncOpenAI, engine: ScriptedEngine, given: dict[str, Any], structure: Structure
) -> None:
    engine.says = "a"
    await client.chat.completions.create(**ASK, extra_body=given)
    assert engine.samplings[-1].structure == structure
    await client.completions.create(model="tiny", prompt="x", extra_body=given)
    assert engine.samplings[-1].structure == structure


async def test_the_client_parses_an_answer_into_a_class(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    class Order(BaseModel):
        order: int

    engine.says = '{"order": 7}'
    answer = await client.chat.completions.parse(**ASK, response_format=Order)
    assert answer.choices[0].message.parsed == Order(order=7)


class Formless(ScriptedEngine):
    """Holds answers to no form."""

    check_structure = Engine.check_structure


async def test_an_engine_that_holds_answers_to_no_form_says_so(tmp_path: Path) -> None:
    async with (
        start_inference(tmp_path, engine=Formless()) as service,
        client_of(service) as client,
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**ASK, response_format={"type": "json_object"})
        assert caught.value.code == "unsupported_parameter"


async def test_embeddings_come_in_order_as_numbers_or_packed(client: openai.AsyncOpenAI) -> None:
    packed = await client.embeddings.create(model="tiny", input=["a", "bcd"])
    plain = await client.embeddings.create(
        model="tiny", input=["a", "bcd"], encoding_format="float"
    )
    assert [each.embedding for each in packed.data] == [[0.5, 0.25, 1.0], [0.5, 0.5, 1.0]]
    assert [each.embedding for each in plain.data] == [each.embedding for each in packed.data]
    assert packed.usage.prompt_tokens == 6
    ids = await client.embeddings.create(model="tiny", input=[256, 97])
    assert ids.data[0].embedding == [0.5, 0.25, 1.0]
    mean = await client.embeddings.create(model="tiny", input="a", extra_body={"pooling": "mean"})
    assert mean.data[0].embedding == [0.25, 0.25, 1.0]


async def test_unicode_survives_streams_and_whole_answers(
    client: openai.AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.says = 'Zürich 你好 🙂 "\\\n\u2028 </script>'
    whole = await client.chat.completions.create(**ASK)
    assert whole.choices[0].message.content == engine.says
    stream = await client.chat.completions.create(**ASK, stream=True)
    assert "".join([part.choices[0].delta.content or "" async for part in stream]) == engine.says
