"""Rows of a prompt alone, optionally with the answer that reward functions compare with."""

from __future__ import annotations

from services.trainer.formats.base import (
    Conversation,
    Example,
    Format,
    Place,
    Prompt,
    Row,
    bad_row,
    empty_row,
    kind_of,
    text_field,
)
from services.trainer.formats.exchanges import read_prompt
from services.trainer.formats.turns import check_system, read_tools, says_something

_BEGINNINGS = ("prompt", "messages", "conversations", "instruction")
# A row that has one of these is another format's, or needs to be told with dataset.columns what it is.
_ANSWERS = ("completion", "response", "output", "text", "chosen", "rejected", "label")


class Prompts(Format):
    """What shall be answered: text goes to the model as it is, turns through the chat template."""

    name = "prompt"
    fields = ("prompt", "messages", "conversations", "instruction", "system", "tools", "answer")

    def fits(self, row: Row) -> bool:
        return "prompt" in row and not any(field in row for field in _ANSWERS)

    def takes(self, row: Row) -> bool:
        return any(field in row for field in _BEGINNINGS)

    def read(self, row: Row, place: Place) -> Example:
        if not any(row.get(field) is not None for field in _BEGINNINGS):
            text_field(row, "prompt", place)
        prompt, answer = read_prompt(row, place), _answer(row, place)
        if isinstance(prompt, str):
            if not prompt.strip():
                raise empty_row(place, "prompt")
            return Example(place, Prompt(prompt, answer))
        if prompt and prompt[-1]["role"] == "assistant":
            # A whole conversation: its last answer is the one to compare with.
            last = prompt.pop()
            answer = last["content"] if answer is None else answer
        if not prompt or not says_something(prompt[-1]):
            raise empty_row(place, "prompt")
        check_system(prompt, place, "messages")
        return Example(
            place, Prompt(Conversation(tuple(prompt), tuple(read_tools(row, place))), answer)
        )


def _answer(row: Row, place: Place) -> str | None:
    value = row.get("answer")
    if value is None or isinstance(value, str):
        return None if value is None else text_field(row, "answer", place)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise bad_row(
        place,
        f'its field "answer" holds {kind_of(value)}, not text',
        "Write the answer as text or a number.",
        "answer",
    )
