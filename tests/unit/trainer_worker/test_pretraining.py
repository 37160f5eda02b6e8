"""Continual pre-training: every token of raw text is learned once, packed; what is not raw text is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.trainer.formats import Example, Place, PlainText
from services.trainer.tokens import load_tokenizer
from services.trainer.tokens.documents import DocumentTokenizer
from tests.unit.trainer_worker.support import COLOURS, Outcome

Train = Callable[..., Outcome]
C4 = Path(__file__).parents[3].parent / "shared" / "data" / "c4_demo.jsonl"
CPT: dict[str, Any] = {"cpt": {}}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    lines = [" ".join([COLOURS[n % 4], "is a colour."] * (1 + n % 9)) for n in range(40)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), "utf-8")
    return path


@pytest.mark.parametrize("max_tokens", [8, 16, 64])
def test_each_token_of_a_long_text_is_learned_once(tiny_base: Path, max_tokens: int) -> None:
    tokenizer = load_tokenizer(tiny_base)
    text = "It was the best of times, it was the worst of times. " * 3
    example = Example(Place("d.jsonl", 1), PlainText(text))
    rows, report = DocumentTokenizer(tokenizer, max_tokens).tokenize([example])
    whole = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert [token for row in rows for token in row.ids[row.learned]] == whole[1:]
    assert max(len(row) for row in rows) <= max_tokens
    assert report.learned_tokens == len(whole) - 1
    assert len(report.split) == (len(whole) > max_tokens)


def test_it_learns_texts_in_packs(train: Train, texts: Path) -> None:
    outcome = train(
        objective=CPT,
        dataset={"path": str(texts)},
        hyperparameters={"epochs": 15, "max_length_tokens": 32, "micro_batch_size": 4},
    )
    assert outcome.code == 0, outcome.message
    assert outcome.losses[0] > 6.5
    assert outcome.losses[-1] < 2.0
    assert "became several rows" in outcome.log
    unpacked = train(
        "unpacked",
        objective=CPT,
        dataset={"path": str(texts)},
        hyperparameters={"epochs": 1, "max_length_tokens": 32, "packing": False},
    )
    assert unpacked.code == 0, unpacked.message
    assert len(outcome.losses) / 15 < len(unpacked.losses)


def test_conversations_are_refused_with_what_works(train: Train) -> None:
    outcome = train(objective=CPT)
    assert "alpaca data, and continual pre-training needs raw text" in outcome.message
    assert "objective sft with dataset.loss_on everything" in outcome.message


@pytest.mark.parametrize(
    ("field", "value"), [("loss_on", "LOSS_ON_LAST_TURN"), ("chat_template", "chatml")]
)
def test_what_is_said_of_turns_is_refused_for_text(
    train: Train, texts: Path, field: str, value: str
) -> None:
    outcome = train(objective=CPT, dataset={"path": str(texts), field: value})
    assert f"dataset.{field}" in outcome.message
    assert "use objective sft" in outcome.message


def test_another_column_can_hold_the_text(train: Train, tmp_path: Path) -> None:
    path = tmp_path / "books.jsonl"
    path.write_text(json.dumps({"body": "Call me Ishmael."}) + "\n", "utf-8")
    outcome = train(
        objective=CPT,
        dataset={"path": str(path), "columns": {"text": "body"}},
        hyperparameters={"max_steps": 1},
    )
    assert outcome.code == 0, outcome.message


@pytest.mark.skipif(not C4.exists(), reason="../shared/data is not there")
def test_c4_trains_as_it_is(train: Train) -> None:
    outcome = train(
        objective=CPT,
        dataset={"path": str(C4)},
        hyperparameters={"max_steps": 2, "max_length_tokens": 256, "micro_batch_size": 2},
    )
    assert outcome.code == 0, outcome.message
    assert "300 rows of c4_demo.jsonl (text)" in outcome.log
