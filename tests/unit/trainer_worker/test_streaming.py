"""Streaming: sets larger than memory are trained on with few rows at hand, and a batch does not depend on those before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.trainer.formats import Place
from services.trainer.run.streams import StreamedRows
from services.trainer.tokens import TokenRow
from tests.unit.trainer_worker.support import Outcome

Train = Callable[..., Outcome]
STREAM: dict[str, Any] = {"streaming": True}
BATCH = 4


class Endless:
    """Rows without end of 5 to 30 tokens; each begins with its number. Counts what was read of it."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[TokenRow]:
        for number in count():
            self.read += 1
            ids = np.full(5 + number % 26, number, np.int32)
            yield TokenRow(Place("d", number), ids, np.arange(len(ids)) > 0)


def streamed(rows: Endless, capacity: int = 0, **options: Any) -> StreamedRows:
    settings: dict[str, Any] = {
        "sequences": 10_000,
        "batch_size": BATCH,
        "seed": 7,
        "by_length": True,
        "done": lambda: None,
        **options,
    }
    return StreamedRows(lambda: iter(rows), 0, capacity=capacity, **settings)


def batch(rows: StreamedRows, number: int) -> dict[str, Any]:
    return rows([{"row": number * BATCH + line} for line in range(BATCH)])


@pytest.mark.parametrize("capacity", [0, 64], ids=["padded", "packed"])
def test_few_rows_are_read_ahead_of_those_that_are_trained_on(capacity: int) -> None:
    source = Endless()
    rows, used = streamed(source, capacity), 0
    for number in range(300):
        used += len(batch(rows, number)["rows"])
        assert source.read - used < 5000


@pytest.mark.parametrize("capacity", [0, 64], ids=["padded", "packed"])
def test_a_batch_is_the_same_whether_those_before_it_were_made_or_not(capacity: int) -> None:
    one, other = streamed(Endless(), capacity), streamed(Endless(), capacity)
    made = [batch(one, number) for number in range(60)]
    assert batch(other, 59)["input_ids"].tolist() == made[59]["input_ids"].tolist()
    assert batch(other, 3)["input_ids"].tolist() == made[3]["input_ids"].tolist()


def test_rows_leave_in_another_order_for_another_seed() -> None:
    one, other = streamed(Endless()), streamed(Endless(), seed=8)
    assert batch(one, 0)["input_ids"].tolist() != batch(other, 0)["input_ids"].tolist()


def test_packs_of_a_stream_are_full_and_rows_of_like_length_share_a_batch() -> None:
    packed, padded = streamed(Endless(), 64), streamed(Endless())
    for made in ([batch(packed, n) for n in range(100)], [batch(padded, n) for n in range(100)]):
        real = sum(len(row) for one in made for row in one["rows"])
        assert real / sum(one["input_ids"].numel() for one in made) > 0.9


def test_no_row_is_lost_or_given_twice() -> None:
    rows = streamed(Endless(), 64)
    given = [row.place.row for number in range(200) for row in batch(rows, number)["rows"]]
    assert len(given) == len(set(given))


@pytest.mark.parametrize("packing", [False, True])
def test_a_streamed_job_learns_and_evaluates(train: Train, task: Path, packing: bool) -> None:
    outcome = train(
        dataset={**STREAM, "eval_sources": [{"path": str(task)}]},
        hyperparameters={"max_steps": 30, "packing": packing, "max_length_tokens": 64},
    )
    assert outcome.code == 0, outcome.message
    assert outcome.losses[-1] < 1.0
    evaluated = [
        e["metrics"]["eval_loss"]
        for e in outcome.events
        if "evalLoss" in str(e) or "eval_loss" in str(e)
    ]
    assert float(evaluated[-1]) < 1.0
    assert "rows" in outcome.log


def test_a_stream_without_a_number_of_steps_is_refused(train: Train) -> None:
    assert "hyperparameters.max_steps" in train(dataset=STREAM).message


def test_a_stream_in_which_nothing_can_be_learned_ends_with_the_reason(train: Train) -> None:
    outcome = train(
        dataset={**STREAM, "cleaning": {"min_length_tokens": 500}}, hyperparameters={"max_steps": 1}
    )
    assert "fewer than 500 tokens" in outcome.message
    assert "dataset.cleaning.min_length_tokens" in outcome.message


def test_texts_are_streamed_for_pre_training(train: Train, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "red is a colour"}\n{"text": "blue is one too"}\n', "utf-8")
    outcome = train(
        objective={"cpt": {}},
        dataset={**STREAM, "path": str(path)},
        hyperparameters={"max_steps": 15, "max_length_tokens": 32},
    )
    assert outcome.code == 0, outcome.message
    assert outcome.losses[-1] < 2.0
