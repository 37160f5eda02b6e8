"""Rows of plain text."""

from __future__ import annotations

from services.trainer.formats.base import (
    Example,
    Format,
    Place,
    PlainText,
    Row,
    bad_row,
    text_field,
)


class Text(Format):
    """The whole text is learned."""

    name = "text"

    def fits(self, row: Row) -> bool:
        return "text" in row

    def read(self, row: Row, place: Place) -> Example:
        text = text_field(row, "text", place)
        if not text.strip():
            raise bad_row(
                place,
                'its field "text" is empty, so there is nothing to learn',
                "Remove the row.",
                "text",
            )
        return Example(place, PlainText(text))
