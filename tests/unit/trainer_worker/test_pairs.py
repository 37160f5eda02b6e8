"""Prompts and answers for preference, labels and sampling have the ids that supervised training and serving have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from graft.errors import GraftError, Reason

from services.trainer.formats import (
    Completion,
    Content,
    Conversation,
    Example,
    Labelled,
    Place,
    Preference,
)
from services.trainer.tokens import ExampleTokenizer, PairTokenizer, load_tokenizer

ASKED: tuple[dict[str, Any], ...] = (
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Say hello"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "Again, in German"},
)
UNMARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_base: Path) -> Any:
    return load_tokenizer(tiny_base)


def pairs(tokenizer: Any, max_tokens: int = 512, **bounds: int) -> PairTokenizer:
    return PairTokenizer(tokenizer, max_tokens, {tokenizer.eos_token_id}, **bounds)


def examples(*contents: Content) -> list[Example]:
    return [Example(Place("d.jsonl", n), content) for n, content in enumerate(contents, 1)]


def talk(answer: str, before: tuple[dict[str, Any], ...] = ASKED) -> Conversation:
    return Conversation((*before, {"role": "assistant", "content": answer}))


def supervised(tokenizer: Any, content: Conversation | Completion) -> list[int]:
    reader = ExampleTokenizer(tokenizer, 512, {tokenizer.eos_token_id})
    ((row,), _) = reader.tokenize(examples(content))
    ids: list[int] = row.ids.tolist()
    return ids


@pytest.mark.parametrize("template", [None, UNMARKED], ids=["marked", "unmarked"])
def test_both_answers_follow_the_same_prompt_as_supervised_training_reads_it(
    tokenizer: Any, template: str | None
) -> None:
    tokenizer.chat_template = template or tokenizer.chat_template
    chosen, rejected = talk("hallo, grüß dich"), talk("hello")
    ((row,), report) = pairs(tokenizer).preferences(examples(Preference(chosen, rejected)))
    for content, answer in ((chosen, row.chosen), (rejected, row.rejected)):
        whole = supervised(tokenizer, content)
        assert whole[: len(row.prompt) + len(answer)] == row.prompt + answer
        assert answer[-1] == tokenizer.eos_token_id
    served = tokenizer.apply_chat_template(list(ASKED), add_generation_prompt=True)["input_ids"]
    assert row.prompt == served
    assert report.learned_tokens == len(row.chosen) + len(row.rejected)


def test_answers_to_a_text_end_with_the_end_token(tokenizer: Any) -> None:
    pair = Preference(Completion("Once upon", " a time"), Completion("Once upon", " no"))
    ((row,), _) = pairs(tokenizer).preferences(examples(pair))
    assert row.prompt == tokenizer("Once upon")["input_ids"]
    assert tokenizer.decode(row.chosen) == " a time" + tokenizer.eos_token
    assert tokenizer.decode(row.rejected) == " no" + tokenizer.eos_token


def test_a_token_over_the_boundary_does_not_make_two_prompts_of_one(tokenizer: Any) -> None:
    pair = Preference(Completion("I said hel", "lo there"), Completion("I said hel", "p"))
    ((row,), _) = pairs(tokenizer).preferences(examples(pair))
    assert row.prompt == tokenizer("I said hel")["input_ids"]


def test_answers_to_different_turns_are_refused_with_their_row(tokenizer: Any) -> None:
    pair = Preference(talk("yes"), talk("no", ASKED[:2]))
    with pytest.raises(GraftError, match=r"d\.jsonl, row 1: its two answers do not follow") as why:
        pairs(tokenizer).preferences(examples(pair))
    assert why.value.reason is Reason.BAD_DATA


def test_what_is_too_long_is_cut_or_left_out_and_named(tokenizer: Any) -> None:
    long_answer = Preference(Completion("a", " word" * 100), Completion("a", "b"))
    long_prompt = Preference(Completion("word " * 100, "a"), Completion("word " * 100, "b"))
    same = Preference(Completion("a", "b"), Completion("a", "b"))
    rows, report = pairs(tokenizer, 32).preferences(examples(long_answer, long_prompt, same))
    assert [len(row.prompt) + len(row.chosen) for row in rows] == [32]
    lines = "\n".join(report.lines(32))
    assert "1 rows are longer than 32 tokens and were cut at the end (d.jsonl, row 1)" in lines
    assert "cuts off their whole answer (d.jsonl, row 2)" in lines
    assert "both answers are the same in 32 tokens (d.jsonl, row 3)" in lines


def test_labelled_answers_keep_their_label(tokenizer: Any) -> None:
    rows, _ = pairs(tokenizer).labelled(
        examples(Labelled(talk("hallo"), True), Labelled(Completion("a", "b"), False))
    )
    assert [row.good for row in rows] == [True, False]
    assert tokenizer.decode(rows[0].answer) == "hallo<|im_end|>"
