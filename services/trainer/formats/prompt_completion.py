"""Rows of a prompt and a completion: both plain text, or both turns."""

from __future__ import annotations

from services.trainer.formats.base import (
    Completion,
    Example,
    Format,
    Place,
    Row,
    empty_row,
    text_field,
)
from services.trainer.formats.exchanges import read_turns
from services.trainer.formats.turns import conversation, read_tools


class PromptCompletion(Format):
    """A prompt of text goes to the model as it is, without a chat template; turns go through it."""

    name = "prompt_completion"
    fields = ("prompt", "completion", "tools")

    def fits(self, row: Row) -> bool:
        return "prompt" in row and "completion" in row

    def read(self, row: Row, place: Place) -> Example:
        if isinstance(row["prompt"], list) or isinstance(row.get("completion"), list):
            messages = read_turns(row, "prompt", place) + read_turns(row, "completion", place)
            return conversation(messages, read_tools(row, place), place, "completion")
        prompt = text_field(row, "prompt", place)
        completion = text_field(row, "completion", place)
        if not completion:
            raise empty_row(place, "completion")
        return Example(place, Completion(prompt, completion))
