"""What the demo stands on: data that comes out the same each time, and a base whose tokenizer and
chat template are the ones that training and serving need."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from examples.corpus import CorpusMaker
from examples.make_data import make_data

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
SETS = ("support/{}_v1", "support/{}_v2", "pirate/{}")
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Where is 48213?"},
    {"role": "assistant", "content": "On its way."},
    {"role": "user", "content": "Größe? 日本 🦜"},
    {"role": "assistant", "content": "Łódź ☃."},
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(EXAMPLES / "base")


def questions(name: str) -> list[str]:
    rows = [json.loads(line) for line in (EXAMPLES / f"{name}.jsonl").read_text().splitlines()]
    return [row["messages"][0]["content"] if "messages" in row else row["instruction"]
            for row in rows]  # fmt: skip


def test_the_data_in_the_repository_is_what_the_command_makes(tmp_path: Path) -> None:
    for made in make_data(tmp_path):
        kept = EXAMPLES / made.relative_to(tmp_path)
        assert made.read_bytes() == kept.read_bytes(), f"run make_data: {kept.name} differs"


@pytest.mark.parametrize("name", SETS)
def test_no_held_out_question_was_trained_on(name: str) -> None:
    train, held_out = questions(name.format("train")), questions(name.format("eval"))
    assert len(held_out) == len(set(held_out)) == 50
    assert not set(train) & set(held_out)


def test_the_two_versions_of_the_support_bot_differ_on_every_question() -> None:
    first, second = ((EXAMPLES / f"support/eval_{version}.jsonl").read_text().splitlines()
                     for version in ("v1", "v2"))  # fmt: skip
    for before, after in zip(first, second, strict=True):
        asked, old = json.loads(before)["messages"]
        asked_again, new = json.loads(after)["messages"]
        assert asked == asked_again
        assert old != new


def test_the_corpus_is_the_same_for_the_same_seed() -> None:
    assert list(islice(CorpusMaker(3), 50)) == list(islice(CorpusMaker(3), 50))


@pytest.mark.parametrize(
    "text",
    [
        "Order 48213 für Łódź",
        "日本語 🦜\u200d",
        "\x00\x07 tabs\t\tand  spaces\r\n",
        "def f(x):\n    ",
    ],
)
def test_the_tokenizer_gives_back_any_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_every_digit_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert [t for t in tokenizer.tokenize("order 48213") if t.isdigit()] == list("48213")


def test_the_special_tokens_differ(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_the_assistant_mask_covers_the_answers_and_their_ends_only(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    marked = tokenizer.apply_chat_template(
        CHAT, return_dict=True, return_assistant_tokens_mask=True
    )
    learned = [token for token, mask in zip(marked["input_ids"], marked["assistant_masks"],
                                            strict=True) if mask]  # fmt: skip
    assert tokenizer.decode(learned) == "On its way.<|im_end|>Łódź ☃.<|im_end|>"


def test_what_is_served_is_the_beginning_of_what_was_trained(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    served = tokenizer.apply_chat_template(CHAT[:2], add_generation_prompt=True, tokenize=False)
    trained = tokenizer.apply_chat_template(CHAT[:3], tokenize=False)
    assert trained == served + "On its way.<|im_end|>\n"


def test_the_template_writes_tools_calls_and_their_results(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tool = {"type": "function", "function": {"name": "get_order", "parameters": {}}}
    call = {"type": "function", "function": {"name": "get_order", "arguments": {"order": "12"}}}
    text = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "Where is 12?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": '{"day": "Monday"}'},
        ],
        tools=[tool],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert json.dumps(tool) in text
    assert '<tool_call>{"name": "get_order", "arguments": {"order": "12"}}</tool_call>' in text
    assert text.endswith('tool\n{"day": "Monday"}<|im_end|>\n<|im_start|>assistant\n')
