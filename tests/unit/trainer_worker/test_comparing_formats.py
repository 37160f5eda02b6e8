"""Rows of preferences, labels and prompts, in every way that people write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from graft.errors import GraftError, Reason

from services.trainer.formats import (
    Completion,
    Content,
    Conversation,
    Labelled,
    Preference,
    Prompt,
    load_examples,
)

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}
BAD = {"role": "assistant", "content": "What?"}
TURN = {"from": "human", "value": "Hi"}
TOOLS = [{"name": "f", "parameters": {}}]


def content(folder: Path, row: dict[str, Any], format_name: str | None = None) -> Content:
    path = folder / "a.jsonl"
    path.write_text(json.dumps(row) + "\n", "utf-8")
    return load_examples(path, format_name).rows[0].content


def refused(folder: Path, row: dict[str, Any], format_name: str | None = None) -> str:
    with pytest.raises(GraftError) as caught:
        content(folder, row, format_name)
    assert caught.value.reason is Reason.BAD_DATA
    assert caught.value.next_step
    assert caught.value.message.startswith("a.jsonl, row 1: ")
    return caught.value.message


def texts(conversation: object) -> list[str]:
    assert isinstance(conversation, Conversation)
    return [message["content"] for message in conversation.messages]


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [TURN], "chosen": {"from": "gpt", "value": "Hello!"}, "rejected": BAD},
        {"messages": [USER], "chosen": GOOD, "rejected": BAD},
        {"messages": [USER], "chosen": "Hello!", "rejected": "What?"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        # As UltraFeedback has it: the prompt, and whole conversations that begin with it.
        {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"instruction": "Hi", "input": "", "chosen": "Hello!", "rejected": "What?"},
    ],
)
def test_two_answers_to_the_same_turns_are_a_preference(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    pair = content(tmp_path, row)
    assert isinstance(pair, Preference)
    assert texts(pair.chosen) == ["Hi", "Hello!"]
    assert texts(pair.rejected) == ["Hi", "What?"]


def test_a_system_turn_and_tools_stand_before_both_answers(tmp_path: Path) -> None:
    row = {"system": "Be kind.", "prompt": "Hi", "chosen": "a", "rejected": "b", "tools": TOOLS}
    pair = content(tmp_path, row)
    assert isinstance(pair, Preference)
    assert texts(pair.chosen) == ["Be kind.", "Hi", "a"]
    assert isinstance(pair.rejected, Conversation)
    assert pair.rejected.tools[0]["function"]["name"] == "f"


def test_answers_to_a_prompt_of_text_stay_text(tmp_path: Path) -> None:
    pair = content(tmp_path, {"prompt": "2+2=", "chosen": "4", "rejected": "5"})
    assert pair == Preference(Completion("2+2=", "4"), Completion("2+2=", "5"))


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        (
            "\n\nHuman: Hi\n\nAssistant: Yes.",
            "\n\nHuman: Hi\n\nAssistant: No.",
            "\n\nHuman: Hi\n\nAssistant:",
        ),
        ("It is good", "It is gold", "It is"),
        ("It is", "It is not", "It"),
        ("Yes", "Yellow", ""),
    ],
)
def test_whole_texts_have_their_common_words_as_prompt(
    tmp_path: Path, chosen: str, rejected: str, prompt: str
) -> None:
    pair = content(tmp_path, {"chosen": chosen, "rejected": rejected})
    assert isinstance(pair, Preference)
    for one, whole in ((pair.chosen, chosen), (pair.rejected, rejected)):
        assert isinstance(one, Completion)
        assert one.prompt == prompt
        assert one.prompt + one.completion == whole
        assert one.completion.strip()


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"chosen": [USER, GOOD], "rejected": [{**USER, "content": "Ho"}, BAD]}, "part before"),
        ({"chosen": [USER, GOOD], "rejected": [USER]}, '"rejected" does not end with a turn'),
        ({"messages": [USER], "chosen": GOOD, "rejected": ""}, '"rejected" is empty'),
        ({"prompt": "Hi", "chosen": " ", "rejected": "b"}, '"chosen" is empty'),
        ({"prompt": "Hi", "chosen": "a", "rejected": None}, '"rejected" is null'),
        ({"prompt": "Hi", "chosen": 3, "rejected": "b"}, '"chosen" holds a number'),
        ({"prompt": "Hi", "chosen": [], "rejected": [BAD]}, '"chosen" does not end'),
        ({"prompt": "Hi", "chosen": {"role": "x"}, "rejected": [BAD]}, '"chosen.role" is'),
    ],
)
def test_a_preference_that_cannot_be_compared_says_why(
    tmp_path: Path, row: dict[str, Any], why: str
) -> None:
    assert why in refused(tmp_path, row)


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"messages": [USER, GOOD]}, ["Hi", "Hello!"]),
        ({"conversations": [TURN, {"from": "gpt", "value": "Hello!"}]}, ["Hi", "Hello!"]),
        ({"instruction": "Hi", "output": "Hello!"}, ["Hi", "Hello!"]),
        ({"prompt": [USER], "completion": [GOOD]}, ["Hi", "Hello!"]),
    ],
)
def test_a_labelled_answer_may_be_in_any_format(
    tmp_path: Path, row: dict[str, Any], answer: list[str]
) -> None:
    for label, good in ((True, True), ("False", False)):
        labelled = content(tmp_path, {**row, "label": label})
        assert isinstance(labelled, Labelled)
        assert labelled.good is good
        assert texts(labelled.answer) == answer


def test_a_labelled_completion_stays_text(tmp_path: Path) -> None:
    row = {"prompt": "2+2=", "completion": "5", "label": False}
    assert content(tmp_path, row) == Labelled(Completion("2+2=", "5"), False)


def test_labels_of_0_and_1_count_where_the_spec_says_that_they_are_labels(tmp_path: Path) -> None:
    row = {"messages": [USER, GOOD], "label": 1}
    assert isinstance(content(tmp_path, row), Conversation)
    labelled = content(tmp_path, row, "kto")
    assert isinstance(labelled, Labelled)
    assert labelled.good


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": [USER, GOOD], "label": "good"}, "is 'good', which is neither true nor false"),
        ({"messages": [USER, GOOD], "label": None}, "is None, which is neither"),
        ({"messages": [USER, GOOD, USER], "label": True}, "last turn is not an answer"),
        ({"text": "x", "label": True}, "hold no answer that a label could be about"),
    ],
)
def test_a_label_that_is_about_nothing_says_why(
    tmp_path: Path, row: dict[str, Any], why: str
) -> None:
    assert why in refused(tmp_path, row, "kto")


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"prompt": "2+2="}, None),
        ({"prompt": "2+2=", "answer": "4"}, "4"),
        ({"prompt": "2+2=", "answer": 4}, "4"),
    ],
)
def test_a_prompt_may_have_the_answer_with_it(
    tmp_path: Path, row: dict[str, Any], answer: str | None
) -> None:
    assert content(tmp_path, row) == Prompt("2+2=", answer)


def test_a_prompt_may_be_turns(tmp_path: Path) -> None:
    prompt = content(tmp_path, {"prompt": [USER], "answer": "Hello!", "tools": TOOLS})
    assert isinstance(prompt, Prompt)
    assert texts(prompt.prompt) == ["Hi"]
    whole = content(tmp_path, {"messages": [USER, GOOD]}, "prompt")
    assert isinstance(whole, Prompt)
    assert (texts(whole.prompt), whole.answer) == (["Hi"], "Hello!")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": " "}, '"prompt" is empty'),
        ({"prompt": []}, '"prompt" is empty'),
        ({"prompt": "x", "answer": ["4"]}, '"answer" holds a list'),
        ({"messages": [GOOD]}, '"prompt" is empty'),
        ({"question": "x"}, 'no field "prompt"'),
    ],
)
def test_a_prompt_that_asks_nothing_says_why(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    assert why in refused(tmp_path, row, "prompt")


@pytest.mark.parametrize("other", ["response", "output"])
def test_a_prompt_beside_an_answer_of_another_name_is_not_taken_for_a_prompt_alone(
    tmp_path: Path, other: str
) -> None:
    message = refused(tmp_path, {"prompt": "Hi", other: "Hello!"})
    assert f'its fields ("prompt", "{other}") are of no format' in message
