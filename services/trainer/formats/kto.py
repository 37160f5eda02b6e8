"""KTO rows: an answer, as any of the supervised formats writes it, and whether it is good."""

from __future__ import annotations

from typing import Any

from services.trainer.formats.alpaca import Alpaca
from services.trainer.formats.base import (
    Completion,
    Conversation,
    Example,
    Format,
    Labelled,
    Place,
    Row,
    bad_row,
)
from services.trainer.formats.messages import Messages
from services.trainer.formats.prompt_completion import PromptCompletion
from services.trainer.formats.sharegpt import ShareGpt
from services.trainer.formats.turns import says_something

_LABELS = {"true": True, "false": False, "1": True, "0": False}
_WORDS = ("true", "false")


class Kto(Format):
    """The last turn, or the completion, is what the label is about."""

    name = "kto"
    fields = (
        *("messages", "conversations", "prompt", "completion", "instruction", "input", "output"),
        *("system", "history", "tools", "label"),
    )
    compares = True

    def __init__(self) -> None:
        self._answers: tuple[Format, ...] = (Messages(), ShareGpt(), Alpaca(), PromptCompletion())

    def fits(self, row: Row) -> bool:
        label = row.get("label")
        is_word = isinstance(label, str) and label.strip().lower() in _WORDS
        return (isinstance(label, bool) or is_word) and self._inner(row) is not None

    def takes(self, row: Row) -> bool:
        return "label" in row

    def _inner(self, row: Row) -> Format | None:
        return next((known for known in self._answers if known.fits(row)), None)

    def read(self, row: Row, place: Place) -> Example:
        inner = self._inner(row)
        if inner is None:
            names = ", ".join(f'"{name}"' for name in row) or "none"
            raise bad_row(
                place,
                f"its fields ({names}) hold no answer that a label could be about",
                "Add messages, conversations, or prompt and completion.",
            )
        good = _label(row, place)
        answer = inner.read(row, place).content
        assert isinstance(answer, Conversation | Completion)
        if isinstance(answer, Conversation):
            last = answer.messages[-1]
            if last["role"] != "assistant" or not says_something(last):
                raise bad_row(
                    place,
                    "its last turn is not an answer of the assistant, which the label is about",
                    "End the row with the answer.",
                )
        return Example(place, Labelled(answer, good))


def _label(row: Row, place: Place) -> bool:
    value: Any = row.get("label")
    found = _LABELS.get(str(value).strip().lower())
    if found is None:
        raise bad_row(
            place,
            f'its field "label" is {value!r}, which is neither true nor false'
            if "label" in row
            else 'it has no field "label"',
            "Write true for a good answer and false for a bad one.",
            "label",
        )
    return found
