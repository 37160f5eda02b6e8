"""Rows of a prompt and a completion, both plain text."""

from __future__ import annotations

from services.trainer.formats.base import (
    Completion,
    Example,
    Format,
    Place,
    Row,
    bad_row,
    text_field,
)


class PromptCompletion(Format):
    """The prompt goes to the model as it is, without a chat template."""

    name = "prompt_completion"

    def fits(self, row: Row) -> bool:
        return "prompt" in row and "completion" in row

    def read(self, row: Row, place: Place) -> Example:
        prompt = text_field(row, "prompt", place)
        completion = text_field(row, "completion", place)
        if not completion:
            raise bad_row(
                place,
                'its field "completion" is empty, so there is nothing to learn',
                "Add the completion or remove the row.",
                "completion",
            )
        return Example(place, Completion(prompt, completion))
