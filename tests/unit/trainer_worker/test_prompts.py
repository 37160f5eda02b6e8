"""Prompts as tokens: what a served model would be asked, and the answer that is looked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from graft.errors import GraftError, Reason

from services.trainer.formats import Completion, Conversation, Example, Place, Prompt
from services.trainer.tokens import load_tokenizer
from services.trainer.tokens.prompts import PromptTokenizer

pytestmark = pytest.mark.filterwarnings("default")
ASK = {"role": "user", "content": "What is red?"}
SAY = {"role": "assistant", "content": "A colour"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {}}}],
}
TOOL = {"type": "function", "function": {"name": "look", "description": "", "parameters": {}}}


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return load_tokenizer(tiny_base)


def example(content: Any, row: int = 1) -> Example:
    return Example(Place("a.jsonl", row), content)


@pytest.mark.parametrize("tools", [(), (TOOL,)])
def test_turns_are_asked_as_the_chat_template_asks_when_served(tokenizer: Any, tools: Any) -> None:
    content = Prompt(Conversation((ASK, SAY, ASK), tools), "blue")
    (row,), _ = PromptTokenizer(tokenizer, 999).tokenize([example(content)])
    served = tokenizer.apply_chat_template(
        [ASK, SAY, ASK], tools=list(tools) or None, add_generation_prompt=True, return_dict=False
    )
    assert row.ids == served
    assert row.answer == "blue"


def test_text_is_asked_as_it_is(tokenizer: Any) -> None:
    (row,), _ = PromptTokenizer(tokenizer, 999).tokenize([example(Prompt("What is red?", None))])
    assert row.ids == tokenizer("What is red?")["input_ids"]
    assert row.answer is None


def test_the_last_answer_is_the_one_to_compare_with_and_is_not_asked(tokenizer: Any) -> None:
    contents = [
        Conversation((ASK, SAY)),
        Conversation((ASK,)),
        Conversation((ASK, CALL), (TOOL,)),
        Completion("What is red?", " A colour"),
    ]
    rows, _ = PromptTokenizer(tokenizer, 999).tokenize([example(content) for content in contents])
    assert [row.answer for row in rows] == ["A colour", None, None, " A colour"]
    assert rows[0].ids == rows[1].ids
    assert rows[3].ids == tokenizer("What is red?")["input_ids"]


def test_prompts_that_leave_no_room_are_left_out_whole_and_named(tokenizer: Any) -> None:
    short, long = example(Prompt("red", None), 1), example(Prompt("red " * 50, None), 2)
    rows, left_out = PromptTokenizer(tokenizer, 10).tokenize([short, long])
    assert [row.place.row for row in rows] == [1]
    ((why, places),) = left_out.items()
    assert "leaves no room for an answer (more than 10 tokens)" in why
    assert str(places) == "a.jsonl, row 2"


def test_bounds_of_length_leave_prompts_out(tokenizer: Any) -> None:
    examples = [example(Prompt("red " * n, None), n) for n in (1, 8, 30)]
    rows, left_out = PromptTokenizer(tokenizer, 999, 6, 20).tokenize(examples)
    assert [row.place.row for row in rows] == [8]
    assert len(left_out) == 2


def test_no_prompt_at_all_is_an_error_that_says_why(tokenizer: Any) -> None:
    with pytest.raises(
        GraftError, match=r"No row has a prompt to answer: .*a.jsonl, row 1"
    ) as error:
        PromptTokenizer(tokenizer, 1).tokenize([example(Prompt("red red red", None))])
    assert error.value.reason is Reason.BAD_DATA
    assert "max_completion_tokens" in error.value.next_step
