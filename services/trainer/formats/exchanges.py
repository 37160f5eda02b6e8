"""What comes before an answer, and answers, in every way that data sets write them: text, a turn, or turns."""

from __future__ import annotations

from services.trainer.formats.alpaca import question_turns
from services.trainer.formats.base import (
    Place,
    Row,
    bad_row,
    kind_of,
    list_field,
    text_field,
)
from services.trainer.formats.turn_readers import read_turn
from services.trainer.formats.turns import system_turn

_TEXT_ROLES = {"prompt": "user", "completion": "assistant"}


def read_turns(row: Row, field: str, place: Place) -> list[Row]:
    """The turns of a field that holds a list of them, or the text of one.

    Raises:
        GraftError: BAD_DATA.
    """
    if field in _TEXT_ROLES and isinstance(row.get(field), str):
        return [{"role": _TEXT_ROLES[field], "content": text_field(row, field, place)}]
    return [
        read_turn(turn, f"{field}[{index}]", place)
        for index, turn in enumerate(list_field(row, field, place))
    ]


def read_prompt(row: Row, place: Place) -> list[Row] | str:
    """What a row says before its answers: turns, or text that goes to the model as it is ("" for nothing).

    Raises:
        GraftError: BAD_DATA.
    """
    for field in ("messages", "conversations"):
        if row.get(field) is not None:
            return system_turn(row, place) + read_turns(row, field, place)
    if row.get("instruction") is not None:
        return question_turns(row, place)
    if isinstance(row.get("prompt"), list) or row.get("system"):
        return system_turn(row, place) + read_turns(row, "prompt", place)
    return text_field(row, "prompt", place, required=False)


def read_answer(row: Row, field: str, place: Place) -> list[Row] | str:
    """An answer: text, or the turns of a list, or the one turn that the field holds.

    Raises:
        GraftError: BAD_DATA.
    """
    value = row.get(field)
    if value is None or isinstance(value, str):
        return text_field(row, field, place)
    if isinstance(value, dict):
        return [read_turn(value, field, place)]
    if isinstance(value, list):
        return read_turns(row, field, place)
    raise bad_row(
        place,
        f'its field "{field}" holds {kind_of(value)}, not an answer',
        "Write it as text, as one message, or as a list of messages.",
        field,
    )


def as_turns(prompt: list[Row] | str) -> list[Row]:
    """A prompt as turns; text is what the user says."""
    if isinstance(prompt, list):
        return prompt
    return [{"role": "user", "content": prompt}] if prompt else []
