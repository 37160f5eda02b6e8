"""A served conversation reads, token by token, as the conversations that an adapter was trained on."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graft.generation import chat_request
from graft.inference.v1 import inference_service_pb2 as pb
from transformers import AutoTokenizer

from services.inference.convert.requests import chat_question
from services.inference.engines.vllm_tokenizer import BaseTokenizer
from services.inference.prompts import Conversation
from services.inference.templates import ChatTemplate
from services.trainer.chat_templates import named_template, template_for, template_names
from services.trainer.formats import Place
from services.trainer.formats.messages import Messages
from services.trainer.tokens import IGNORED, ExampleTokenizer

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is, in °C",
        "parameters": {
            "type": "object",
            "properties": {"where": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
            "required": ["where"],
        },
    },
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"where": "Zürich", "days": 2}'},
}
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "one turn": {"messages": [{"role": "user", "content": "Order 48213 is late."}]},
    "with a system message": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "  Hello,\n\tgrüß dich 你好 <|im_end|> "},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": ""},
        ]
    },
    "with tools": {
        "messages": [{"role": "user", "content": "How warm is it?"}],
        "tools": [WEATHER],
    },
    "with tools, a call and its result": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "How warm is it in Zürich?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": '{"celsius": 12.0}', "tool_call_id": "call_1"},
        ],
        "tools": [WEATHER, {"type": "function", "function": {"name": "now"}}],
    },
}
ANSWER = {"role": "assistant", "content": "It is 12 °C."}


@pytest.fixture(scope="module")
def tokenizer(example_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(example_base)


NAMED = [
    (template, name)
    for template in template_names()
    for name, row in CONVERSATIONS.items()
    if "tools" not in row or named_template(template).tools
]


def trained(tokenizer: Any, row: dict[str, Any]) -> tuple[list[int], int]:
    """The ids that the worker makes of a row of data, and where its last answer begins."""
    whole = {**row, "messages": [*row["messages"], ANSWER]}
    example = Messages().read(json.loads(json.dumps(whole)), Place("train.jsonl", 1))
    reader = ExampleTokenizer(tokenizer, 4096, {tokenizer.eos_token_id})
    ((tokens,), _) = reader.tokenize([example])
    learned = np.flatnonzero(tokens.labels != IGNORED)
    gaps = np.flatnonzero(np.diff(learned) > 1)
    begins = learned[gaps[-1] + 1] if len(gaps) else learned[0]
    return tokens.ids.tolist(), int(begins)


def served(tokenizer: Any, request: pb.ChatRequest, template: str = "") -> list[int]:
    """The ids that the engine gets for a call; template is what the version brings, if it brings one."""
    conversation = chat_question(request).prompt
    assert isinstance(conversation, Conversation)
    base = BaseTokenizer(tokenizer)
    messages, tools = conversation.messages, conversation.tools
    if template:
        own = ChatTemplate("bot", template)
        text = own.render(messages, tools, base.special_tokens, 10_000)
    else:
        text = base.render_chat(messages, tools)
    return base.tokenize(text, special_tokens=False)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_prompt_of_a_chat_is_what_came_before_the_answer_in_training(
    tokenizer: Any, name: str
) -> None:
    row = CONVERSATIONS[name]
    request = chat_request("tiny", row["messages"], row.get("tools", ()), {})
    ids, begins = trained(tokenizer, row)
    assert served(tokenizer, request) == ids[:begins]


@pytest.mark.parametrize(("template", "name"), NAMED)
def test_a_versions_own_template_makes_the_prompt_that_it_was_trained_on(
    tokenizer: Any, template: str, name: str
) -> None:
    row = CONVERSATIONS[name]
    text = template_for(template, tokenizer, {tokenizer.eos_token_id})
    trainers = copy.copy(tokenizer)
    trainers.chat_template = text
    ids, begins = trained(trainers, row)
    request = chat_request("tiny", row["messages"], row.get("tools", ()), {})
    assert served(tokenizer, request, text) == ids[:begins]


def test_a_template_that_names_speakers_and_calls_gets_them_as_in_training(tokenizer: Any) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "name": "Ada", "content": "How warm is it in Zürich?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "12", "name": "weather", "tool_call_id": "call_1"},
    ]
    template = "{% for m in messages %}{{ m.role }}|{{ m.name }}|{{ m.tool_call_id }}|{% endfor %}"
    example = Messages().read(json.loads(json.dumps({"messages": messages})), Place("x.jsonl", 1))
    conversation = chat_question(chat_request("tiny", messages, (), {})).prompt
    assert isinstance(conversation, Conversation)
    asked, learned = (
        tokenizer.apply_chat_template(each, chat_template=template, tokenize=False)
        for each in (conversation.messages, example.content.messages)  # type: ignore[union-attr]
    )
    assert asked == learned == "user|Ada||assistant|||tool|weather|call_1|"


@pytest.mark.parametrize("texts", [["x"], ["ab" * 50, "  \n\n  ", "Zürich 你好", "<|im_start|>"]])
def test_no_text_has_more_characters_than_its_tokens_may_stand_for(
    tokenizer: Any, texts: list[str]
) -> None:
    base = BaseTokenizer(tokenizer)
    for text in [*texts, *tokenizer.get_vocab()]:
        ids = base.tokenize(text, special_tokens=False)
        assert len(text) <= len(ids) * base.max_token_characters
