"""Conversations: answered through the chat template, refused in time, and holding up nobody."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as pb

from services.inference.convert.conversations import plain
from services.inference.convert.requests import chat_question
from services.inference.engines.fake import FakeEngine
from services.inference.prompts import LONG_BYTES, Conversation
from tests.support.inference import RunningInference, question, start_inference
from tests.support.waiting import eventually
from tests.unit.inference.refusals import refusal


async def test_a_conversation_is_answered_through_the_chat_template(
    service: RunningInference,
) -> None:
    messages = [pb.ChatMessage(role="user", content="hi")]
    sampling = pb.SamplingParams(max_tokens=4, temperature=0)
    chat = pb.ChatRequest(model="tiny", messages=messages, sampling=sampling)
    request = question("tiny", max_tokens=4)
    request.prompt_token_ids.ids.extend(b"user: hi\nassistant: ")
    expected = (await service.stub.Generate(request)).text
    assert (await service.stub.Chat(chat)).text == expected
    assert "".join([part.text async for part in service.stub.StreamChat(chat)]) == expected


def test_a_struct_has_sorted_keys_and_whole_numbers() -> None:
    struct = ParseDict({"b": 1, "a": {"d": [2.5, 3.0], "c": True}}, Struct())
    assert repr(plain(struct)) == "{'a': {'c': True, 'd': [2.5, 3]}, 'b': 1}"


WRONG_CONVERSATIONS = [
    ([], "messages"),
    ([pb.ChatMessage(role="robot", content="x")], "messages[0].role"),
    ([pb.ChatMessage(role="assistant", content="x")], "assistant"),
    ([pb.ChatMessage(role="user", tool_calls=[pb.ToolCall(name="f")])], "messages[0].tool_calls"),
]


async def test_a_wrong_conversation_is_refused(service: RunningInference) -> None:
    for messages, word in WRONG_CONVERSATIONS:
        error = await refusal(service.stub.Chat(pb.ChatRequest(model="tiny", messages=messages)))
        assert error.reason is Reason.INVALID_REQUEST
        assert word in error.message
        assert error.next_step


def chat(*contents: str) -> pb.ChatRequest:
    messages = [pb.ChatMessage(role="user", content=content) for content in contents]
    return pb.ChatRequest(model="tiny", messages=messages, sampling=pb.SamplingParams(max_tokens=1))


@pytest.mark.parametrize(
    ("overlong", "words"),
    [
        (chat("x" * 15_000_000), "15000000 characters"),
        (chat("x" * 400, "y" * 400), "800 characters"),
        (chat(*["x"] * 100_000), "100000 messages"),
    ],
    ids=["one long message", "long together", "many messages"],
)
async def test_an_overlong_conversation_is_refused_before_anything_is_done_with_it(
    service: RunningInference, monkeypatch: pytest.MonkeyPatch, overlong: pb.ChatRequest, words: str
) -> None:
    calls: list[str] = []
    for name in ("render_chat", "tokenize"):
        monkeypatch.setattr(service.engine, name, lambda *_, name=name, **__: calls.append(name))
    error = await refusal(service.stub.Chat(overlong))
    assert error.reason is Reason.PROMPT_TOO_LONG
    assert words in error.message
    assert error.next_step
    assert not calls


async def test_a_conversation_that_its_template_makes_too_long_is_not_tokenized(
    service: RunningInference, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(service.engine, "tokenize", lambda *_, **__: calls.append("tokenize"))
    error = await refusal(service.stub.Chat(chat("x" * 500)))
    assert error.reason is Reason.PROMPT_TOO_LONG
    assert f"{len('user: ' + 'x' * 500 + chr(10) + 'assistant: ')} characters" in error.message
    assert not calls


@pytest.mark.parametrize("kind", ["prompt", "chat"])
async def test_while_a_long_prompt_is_tokenized_others_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    long = "x" * (LONG_BYTES + 1)
    engine = FakeEngine(max_context_tokens=2 * len(long))
    began, go_on = threading.Event(), threading.Event()
    tokenize = engine.tokenize

    def slowly(text: str, *, special_tokens: bool) -> list[int]:
        if long in text:
            began.set()
            assert go_on.wait(10), "nobody was answered meanwhile"
        return tokenize(text, special_tokens=special_tokens)

    monkeypatch.setattr(engine, "tokenize", slowly)
    async with start_inference(tmp_path, engine=engine) as service:
        call = (
            service.stub.Generate(question("tiny", long))
            if kind == "prompt"
            else service.stub.Chat(chat(long))
        )
        slow = asyncio.ensure_future(call)
        await eventually(began.is_set, "the long prompt's turn")
        parts = [part async for part in service.stub.StreamGenerate(question("tiny"))]
        assert parts[-1].usage.completion_tokens == 8
        assert not slow.done()
        go_on.set()
        assert (await slow).usage.prompt_tokens > len(long)


def test_tools_and_arguments_as_json_keep_their_order() -> None:
    call = pb.ToolCall(name="f", arguments_json='{"b": 1, "a": 2.0}')
    request = pb.ChatRequest(
        model="tiny",
        messages=[
            pb.ChatMessage(role="assistant", tool_calls=[call]),
            pb.ChatMessage(role="tool", content="3"),
        ],
        tools_json=['{"type": "function", "function": {"name": "f", "description": ""}}'],
    )
    prompt = chat_question(request).prompt
    assert isinstance(prompt, Conversation)
    assert repr(prompt.tools[0]) == (
        "{'type': 'function', 'function': {'name': 'f', 'description': ''}}"
    )
    function = prompt.messages[0]["tool_calls"][0]["function"]
    assert repr(function) == "{'name': 'f', 'arguments': {'b': 1, 'a': 2.0}}"


@pytest.mark.parametrize("arguments", ["[1]", "{", '{"a": "\\ud800"}', "[" * 100_000])
def test_arguments_that_are_not_json_are_refused_by_name(arguments: str) -> None:
    call = pb.ToolCall(name="f", arguments_json=arguments)
    messages = [
        pb.ChatMessage(role="assistant", tool_calls=[call]),
        pb.ChatMessage(role="user", content="x"),
    ]
    field = r"messages\[0\].tool_calls\[0\].arguments_json"
    with pytest.raises(GraftError, match=field) as caught:
        chat_question(pb.ChatRequest(model="tiny", messages=messages))
    assert caught.value.next_step


async def test_a_tool_without_a_name_is_refused(service: RunningInference) -> None:
    request = pb.ChatRequest(model="tiny", messages=[pb.ChatMessage(role="user", content="x")])
    request.tools.add().update({"type": "function"})
    assert "tools[0].function.name" in (await refusal(service.stub.Chat(request))).message
