"""Examples -> rows of token ids, for the objectives that compare answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.trainer.formats import Example
from services.trainer.objectives.base import Prepared, Reading
from services.trainer.tokens.pairs import LabelledRow, PairTokenizer, PreferenceRow
from services.trainer.tokens.report import TokenReport

Row = dict[str, Any]


def prepare_pairs(
    training: list[Example], held_out: list[Example], reading: Reading, *, whole: bool = False
) -> Prepared:
    """Preferences as prompt_ids, chosen_ids and rejected_ids; whole: prompts are part of both answers.

    Raises:
        GraftError: BAD_DATA, when no pair is left.
    """

    def read(examples: list[Example]) -> list[Row]:
        rows, report = _tokenizer(reading).preferences(examples)
        _tell(report, reading)
        return [_whole(row) if whole else _pair(row) for row in rows]

    return _prepared(read(training), read(held_out) if held_out else None)


def prepare_labelled(
    training: list[Example], held_out: list[Example], reading: Reading
) -> Prepared:
    """Labelled answers as prompt_ids, completion_ids and label.

    Raises:
        GraftError: BAD_DATA, when no row is left.
    """

    def read(examples: list[Example]) -> list[Row]:
        rows, report = _tokenizer(reading).labelled(examples)
        _tell(report, reading)
        return [_labelled(row) for row in rows]

    return _prepared(read(training), read(held_out) if held_out else None)


def _prepared(rows: Sequence[Row], held_out: Sequence[Row] | None) -> Prepared:
    return Prepared(rows, held_out, len(rows), len(rows))


def _tokenizer(reading: Reading) -> PairTokenizer:
    cleaning = reading.spec.dataset.cleaning
    return PairTokenizer(
        reading.tokenizer,
        reading.max_tokens,
        reading.end_ids,
        shortest_tokens=cleaning.min_length_tokens,
        longest_tokens=cleaning.max_length_tokens,
    )


def _tell(report: TokenReport, reading: Reading) -> None:
    for line in report.lines(reading.max_tokens):
        reading.log(line)


def _pair(row: PreferenceRow) -> Row:
    return {
        "place": row.place,
        "prompt_ids": row.prompt,
        "chosen_ids": row.chosen,
        "rejected_ids": row.rejected,
    }


def _whole(row: PreferenceRow) -> Row:
    return {
        "place": row.place,
        "chosen_ids": row.prompt + row.chosen,
        "rejected_ids": row.prompt + row.rejected,
    }


def _labelled(row: LabelledRow) -> Row:
    return {
        "place": row.place,
        "prompt_ids": row.prompt,
        "completion_ids": row.answer,
        "label": row.good,
    }
