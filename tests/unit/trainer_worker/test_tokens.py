"""Only what the assistant says is learned, and always how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graft.errors import GraftError, Reason
from transformers import AutoTokenizer

from services.trainer.formats import Completion, Conversation, Example, Place, PlainText
from services.trainer.tokens import IGNORED, ExampleTokenizer, TokenReport, TokenRow
from tests.unit.trainer_worker.support import ROOT, Outcome

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Shows an earlier answer otherwise than the last one, as templates of reasoning models do.
FORGETFUL = CHATML.replace(
    "{{ m['content'] }}", "{{ m['content'] if loop.last or m['role'] == 'user' else '...' }}"
)
TURNS: tuple[dict[str, Any], ...] = (
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Say <|im_end|> or hello"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "Again"},
    {"role": "assistant", "content": "hello, grüß dich 你好"},
)


@pytest.fixture
def tokenizer(tiny_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_base)


def rows_of(
    tokenizer: Any,
    *contents: Conversation | Completion | PlainText,
    max_tokens: int = 512,
    **options: Any,
) -> tuple[list[TokenRow], TokenReport]:
    reader = ExampleTokenizer(tokenizer, max_tokens, {tokenizer.eos_token_id}, **options)
    examples = [Example(Place("d.jsonl", n), content) for n, content in enumerate(contents, 1)]
    return reader.tokenize(examples)


def learned(tokenizer: Any, row: TokenRow) -> list[str]:
    """The learned stretches of a row, as text."""
    stretches: list[list[int]] = []
    before = False
    for token, label in zip(row.ids, row.labels, strict=True):
        if label != IGNORED:
            assert label == token
            if not before:
                stretches.append([])
            stretches[-1].append(int(token))
        before = label != IGNORED
    return [tokenizer.decode(stretch) for stretch in stretches]


def test_the_assistants_turns_and_their_ends_are_learned(tokenizer: Any) -> None:
    (row,), report = rows_of(tokenizer, Conversation(TURNS))
    answers = ["hello<|im_end|>", "hello, grüß dich 你好<|im_end|>"]
    assert learned(tokenizer, row) == answers
    assert report.learned_tokens == int((row.labels != IGNORED).sum())


def test_a_template_without_marks_gives_the_same_answers(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    (row,), report = rows_of(tokenizer, Conversation(TURNS))
    assert learned(tokenizer, row) == ["hello<|im_end|>", "hello, grüß dich 你好<|im_end|>"]
    assert report.unsure_turns == 0


def test_a_turn_that_the_template_shows_otherwise_later_is_not_learned(tokenizer: Any) -> None:
    tokenizer.chat_template = FORGETFUL
    (row,), report = rows_of(tokenizer, Conversation(TURNS))
    assert learned(tokenizer, row) == ["hello, grüß dich 你好<|im_end|>"]
    assert report.unsure_turns == 1
    assert any("1 earlier turns" in line for line in report.lines(512))


def test_an_end_that_the_marks_leave_out_is_learned_all_the_same(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
        "<|im_end|>\n{% endfor %}"
    )
    (row,), _ = rows_of(tokenizer, Conversation(TURNS))
    assert learned(tokenizer, row)[0] == "hello<|im_end|>"


def test_tool_calls_are_learned_and_their_results_are_not(tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "w", "arguments": {"city": "Bonn"}}}
    turns: tuple[dict[str, Any], ...] = (
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    )
    tools = ({"type": "function", "function": {"name": "w", "description": "d"}},)
    (row,), _ = rows_of(tokenizer, Conversation(turns, tools))
    first, second = learned(tokenizer, row)
    assert '"name": "w"' in first
    assert "Bonn" in first
    assert second == "It rains.<|im_end|>"
    assert "description" in tokenizer.decode(row.ids)


def test_a_completion_is_learned_with_its_end_and_its_prompt_is_not(tokenizer: Any) -> None:
    (row,), _ = rows_of(tokenizer, Completion("Once upon", " a time"))
    assert learned(tokenizer, row) == [" a time" + tokenizer.eos_token]


def test_a_prompt_is_tokenized_as_it_will_be_served(tokenizer: Any) -> None:
    # "hel" + "lo" as one text may be one token; served, the prompt "hel" never is.
    (row,), _ = rows_of(tokenizer, Completion("I said hel", "lo there"))
    prompt = tokenizer("I said hel")["input_ids"]
    assert row.ids[: len(prompt)].tolist() == prompt


def test_plain_text_is_learned_from_its_second_token_to_its_end(tokenizer: Any) -> None:
    (row,), _ = rows_of(tokenizer, PlainText("A tale of two cities"))
    assert row.ids[-1] == tokenizer.eos_token_id
    assert row.labels[0] == IGNORED
    assert (row.labels[1:] == row.ids[1:]).all()


def test_long_rows_are_cut_and_rows_without_an_answer_left_out_and_both_are_named(
    tokenizer: Any,
) -> None:
    long_answer = Completion("a", " word" * 100)
    long_prompt = Completion("word " * 100, "a")
    rows, report = rows_of(tokenizer, long_answer, long_prompt, max_tokens=32)
    assert [len(row) for row in rows] == [32]
    lines = "\n".join(report.lines(32))
    assert "1 rows are longer than 32 tokens and were cut at the end (d.jsonl, row 1)" in lines
    assert "cuts off their whole answer (d.jsonl, row 2)" in lines


def test_a_set_with_nothing_to_learn_is_refused(tokenizer: Any) -> None:
    with pytest.raises(GraftError, match="No row has anything to learn") as caught:
        rows_of(tokenizer, Completion("word " * 100, "a"), max_tokens=32)
    assert caught.value.reason is Reason.BAD_DATA
    assert "max_length_tokens" in caught.value.next_step


def test_what_the_template_refuses_is_said_with_the_row(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(GraftError, match=r"d\.jsonl, row 1: .*roles must alternate") as caught:
        rows_of(tokenizer, Conversation(TURNS))
    assert caught.value.reason is Reason.BAD_DATA


def test_a_base_without_a_template_is_refused_for_conversations(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(GraftError, match="no chat template"):
        rows_of(tokenizer, Conversation(TURNS))


def test_lengths_add_up(tokenizer: Any) -> None:
    rows, report = rows_of(tokenizer, PlainText("one"), PlainText("one two three"))
    assert report.tokens == int(np.sum([len(row) for row in rows]))


@pytest.mark.parametrize("template", [None, CHATML], ids=["marked", "unmarked"])
def test_the_last_turn_alone_is_learned_where_the_spec_says_so(
    tokenizer: Any, template: str | None
) -> None:
    tokenizer.chat_template = template or tokenizer.chat_template
    (row,), _ = rows_of(tokenizer, Conversation(TURNS), loss_on="last_turn")
    assert learned(tokenizer, row) == ["hello, grüß dich 你好<|im_end|>"]


def test_everything_is_learned_where_the_spec_says_so_even_of_prompts(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    rows, _ = rows_of(
        tokenizer, Conversation(TURNS), Completion("Once upon", " a time"), loss_on="everything"
    )
    assert all(row.learned[1:].all() for row in rows)


def test_a_template_that_does_not_show_where_the_answers_are_is_refused_with_the_ways_out(
    tokenizer: Any,
) -> None:
    tokenizer.chat_template = (
        "{% for m in messages | reverse %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    with pytest.raises(GraftError, match=r"no \{% generation %\} marks") as caught:
        rows_of(tokenizer, Conversation(TURNS))
    assert caught.value.reason is Reason.INVALID_SPEC
    assert "dataset.chat_template" in caught.value.next_step
    assert "loss_on to everything" in caught.value.next_step


def test_rows_that_do_not_teach_the_model_to_stop_are_named(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "</turn>")
    _, report = rows_of(tokenizer, Conversation(TURNS), PlainText("A text ends"))
    assert str(report.unended) == "d.jsonl, row 1"
    assert any("where to stop (d.jsonl, row 1)" in line for line in report.lines(512))


def test_rows_shorter_or_longer_than_the_bounds_are_left_out_and_named(tokenizer: Any) -> None:
    texts = [PlainText(" ".join(["word"] * count)) for count in (1, 8, 100)]
    rows, report = rows_of(tokenizer, *texts, shortest_tokens=5, longest_tokens=50)
    assert [row.place.row for row in rows] == [2]
    lines = "\n".join(report.lines(512))
    assert "fewer than 5 tokens (cleaning.min_length_tokens) (d.jsonl, row 1)" in lines
    assert "more than 50 tokens (cleaning.max_length_tokens) (d.jsonl, row 3)" in lines


def test_a_file_of_turns_prompts_and_texts_keeps_its_order(tokenizer: Any) -> None:
    rows, _ = rows_of(
        tokenizer, PlainText("one"), Conversation(TURNS), PlainText("two"), Completion("a", "b")
    )
    assert [row.place.row for row in rows] == [1, 2, 3, 4]


def test_the_end_is_learned_even_where_it_is_the_padding_too(tokenizer: Any) -> None:
    tokenizer.pad_token = tokenizer.eos_token
    rows, report = rows_of(tokenizer, Conversation(TURNS), Completion("Once upon", " a time"))
    assert all(
        row.labels[np.flatnonzero(row.learned)[-1]] == tokenizer.eos_token_id for row in rows
    )
    assert not report.unended


def test_what_the_bounds_left_out_is_in_the_lineage(train: Callable[..., Outcome]) -> None:
    outcome = train(
        dataset={"cleaning": {"min_length_tokens": 28}}, hyperparameters={"max_steps": 1}
    )
    assert outcome.code == 0, outcome.message
    assert "fewer than 28 tokens (cleaning.min_length_tokens)" in outcome.log
    (commit,) = [
        found
        for path in (outcome.work_dir / "result").glob("*.json")
        if "lineage" in (found := json.loads(path.read_text("utf-8")))
    ]
    left_out = commit["lineage"]["metrics"]["rows_removed_min_length_tokens"]
    assert left_out + int(commit["lineage"]["dataRows"]) == 48


def test_an_evaluation_of_which_nothing_is_left_is_refused_as_such(
    train: Callable[..., Outcome], tmp_path: Path
) -> None:
    path = tmp_path / "eval.jsonl"
    path.write_text(json.dumps({"instruction": "word " * 3000, "output": "no"}) + "\n", "utf-8")
    outcome = train(dataset={"eval_sources": [{"path": str(path)}]})
    assert "No held-out row has anything to learn" in outcome.message
    assert "eval.jsonl, row 1" in outcome.message


def test_a_process_that_only_tokenizes_needs_no_torch(tiny_base: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from services.trainer.tokens import ExampleTokenizer, load_tokenizer\n"
        "from services.trainer.tokens.tokenizer import leave_torch_out\n"
        "from services.trainer.formats import Conversation, Example, Place\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "leave_torch_out()\n"
        "tokenizer = load_tokenizer(Path(sys.argv[1]))\n"
        "turns = ({'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'})\n"
        "example = Example(Place('d', 1), Conversation(turns))\n"
        "((row,), _) = ExampleTokenizer(tokenizer, 64, {tokenizer.eos_token_id}).tokenize([example])\n"
        "print(tokenizer.decode(row.ids[row.learned]), sys.modules['torch'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_base)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'sdk'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.strip() == "b<|im_end|> None", done.stderr
