"""Alpaca rows: instruction, input, output, optionally system and history (Taori et al. 2023)."""

from __future__ import annotations

from typing import Any

from services.trainer.formats.base import (
    Example,
    Format,
    Place,
    Row,
    bad_row,
    empty_row,
    list_field,
    text_field,
)
from services.trainer.formats.turns import conversation


class Alpaca(Format):
    """An instruction, on a new line its input if it has one, and the output as the answer."""

    name = "alpaca"
    fields = ("instruction", "input", "output", "system", "history")

    def fits(self, row: Row) -> bool:
        return "instruction" in row

    def read(self, row: Row, place: Place) -> Example:
        output = text_field(row, "output", place)
        if not output.strip():
            raise empty_row(place, "output")
        messages = [*question_turns(row, place), {"role": "assistant", "content": output}]
        return conversation(messages, (), place, "output")


def question_turns(row: Row, place: Place) -> list[Row]:
    """The turns up to and with the row's question.

    Raises:
        GraftError: BAD_DATA.
    """
    instruction = text_field(row, "instruction", place)
    extra = text_field(row, "input", place, required=False)
    system = text_field(row, "system", place, required=False)
    question = f"{instruction}\n{extra}" if extra and instruction else instruction or extra
    messages: list[Row] = [{"role": "system", "content": system}] if system else []
    for index, turn in enumerate(list_field(row, "history", place, required=False)):
        messages += _turn(turn, f"history[{index}]", place)
    messages.append({"role": "user", "content": question})
    return messages


def _turn(turn: Any, path: str, place: Place) -> list[Row]:
    if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(t, str) for t in turn)):
        raise bad_row(
            place,
            f'its field "{path}" is not a pair of question and answer',
            'Write "history" as a list of [question, answer].',
            path,
        )
    return [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
