"""Calls of tools as a client of the service sees them, and readers of forms that are forced."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from graft.errors import Reason
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1 import structured_pb2

from services.inference.engines.base import Delta, Finish, Sampling
from services.inference.engines.fake_forms import FakeToolReader
from services.inference.tool_readers import CallsReader
from tests.support.inference import RunningInference
from tests.unit.inference.refusals import refusal


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": parameters, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


ADD = tool("add", a={"const": 1}, b={"$ref": "#/properties/a"})
STOP = {"type": "function", "function": {"name": "stop"}}


def chat(tool_choice: str = "", *tools: Any, **sampling: Any) -> pb.ChatRequest:
    return pb.ChatRequest(
        model="tiny",
        messages=[pb.ChatMessage(role="user", content="1 + 1?")],
        tools_json=[json.dumps(each) for each in tools],
        tool_choice=tool_choice,
        sampling=pb.SamplingParams(**{"temperature": 0.0, "max_tokens": 90, **sampling}),
    )


async def test_the_models_own_call_is_taken_out_of_the_text(service: RunningInference) -> None:
    service.fake.says = 'call add {"a": 1}'
    for choice in ("", "auto"):
        answer = await service.stub.Chat(chat(choice, ADD))
        assert (answer.text, answer.finish_reason) == ("", pb.FINISH_REASON_TOOL_CALLS)
        (call,) = answer.tool_calls
        assert (call.name, call.arguments_json) == ("add", '{"a": 1}')
        assert re.fullmatch("[A-Za-z0-9]{9}", call.id)
    service.fake.says = "two"
    answer = await service.stub.Chat(chat("auto", ADD))
    assert (answer.text, answer.finish_reason) == ("two", pb.FINISH_REASON_STOP)


async def test_a_reader_of_special_tokens_gets_them_after_learned_tokens_too(
    service: RunningInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a soft prompt has them, which take their part of the context."""
    await service.publish("soft", "one")
    given: list[Sampling] = []
    generate = service.fake.generate

    def watched(*arguments: Any, **options: Any) -> Any:
        given.append(arguments[2])
        return generate(*arguments, **options)

    monkeypatch.setattr(service.fake, "generate", watched)
    monkeypatch.setattr(service.fake, "virtual_tokens", lambda _: 5)
    monkeypatch.setattr(FakeToolReader, "special_tokens_text", True)
    request = chat("auto", ADD)
    request.model = "soft"
    await service.stub.Chat(request)
    await service.stub.Chat(chat())
    assert [one.special_tokens_text for one in given] == [True, False]


async def test_none_keeps_the_tools_from_the_prompt_and_the_calls_in_the_text(
    service: RunningInference,
) -> None:
    service.fake.says = "call add {}"
    answer = await service.stub.Chat(chat("none", ADD))
    assert (answer.text, list(answer.tool_calls)) == ("call add {}", [])
    assert answer.usage.prompt_tokens == (await service.stub.Chat(chat())).usage.prompt_tokens


async def test_a_named_tool_is_called(service: RunningInference) -> None:
    answer = await service.stub.Chat(chat("stop", ADD, STOP))
    assert [(call.name, call.arguments_json) for call in answer.tool_calls] == [("stop", "{}")]
    assert answer.finish_reason == pb.FINISH_REASON_TOOL_CALLS
    parts = [part async for part in service.stub.StreamChat(chat("add", ADD, STOP))]
    calls = [call for part in parts for call in part.tool_calls]
    assert [call.name for call in calls if call.name] == ["add"]
    assert len([call.id for call in calls if call.id]) == 1
    assert json.loads("".join(call.arguments_json for call in calls)) == {"a": 1, "b": 1}


async def test_required_calls_one_whose_references_still_lead_where_they_did(
    service: RunningInference,
) -> None:
    answer = await service.stub.Chat(chat("required", ADD, STOP))
    (call,) = answer.tool_calls
    assert (call.name, json.loads(call.arguments_json)) == ("add", {"a": 1, "b": 1})


async def test_a_call_that_was_cut_off_ends_with_length(service: RunningInference) -> None:
    answer = await service.stub.Chat(chat("add", ADD, max_tokens=14))
    assert answer.finish_reason == pb.FINISH_REASON_LENGTH


@pytest.mark.parametrize("size", [1, 2, 5, 200])
def test_forced_calls_are_read_whatever_the_pieces_are(size: int) -> None:
    said = json.dumps(
        [
            {"name": "a", "parameters": {"x": '}]"\\', "y": [{}, {"z": "["}]}},
            {"name": "b", "parameters": {}},
            {"name": "ä\n", "parameters": {"k": None}},
        ]
    )
    reader = CallsReader()
    calls: dict[int, list[str]] = {}
    pieces = [said[at : at + size] for at in range(0, len(said), size)]
    for number, piece in enumerate(pieces):
        finish = Finish.STOP if number == len(pieces) - 1 else None
        delta = reader.read(Delta(piece, (), finish=finish))
        assert not delta.text
        for part in delta.tool_calls:
            call = calls.setdefault(part.index, ["", ""])
            call[0], call[1] = call[0] + part.name, call[1] + part.arguments
    assert delta.finish is Finish.TOOL_CALLS
    assert [(name, json.loads(text)) for name, text in calls.values()] == [
        (each["name"], each["parameters"]) for each in json.loads(said)
    ]


WRONG = [
    (chat("", {"type": "function", "function": {}}), "tools[0].function.name is missing"),
    (chat("", {"function": {"name": "a b"}}), "tools[0].function.name is 'a b'"),
    (chat("", ADD, STOP, ADD), "tools[2].function.name is 'add', as tools[0]'s is"),
    (chat("", {"function": {"name": "a", "parameters": []}}), "tools[0].function.parameters"),
    (chat("", *[tool(f"t{index}") for index in range(129)]), "tools has 129"),
    (chat("subtract", ADD), "tool_choice is 'subtract', and no tool has that name"),
    (chat("required"), "tool_choice is 'required', and there are no tools"),
    (
        chat("auto", ADD, structure=structured_pb2.Structure(json_object=True)),
        "sampling.structure is set, and tools may be called",
    ),
    (chat("add", tool("add", a={"$ref": "#"})), "sampling.structure.json_schema"),
]


async def test_wrong_tools_are_refused_with_the_name_of_what_is_wrong(
    service: RunningInference,
) -> None:
    service.fake.hold(after_tokens=0)
    for request, words in WRONG:
        error = await refusal(service.stub.Chat(request))
        assert error.reason is Reason.INVALID_REQUEST
        assert words in error.message
        assert error.next_step
