"""Rows of plain text."""

from __future__ import annotations

from services.trainer.formats.base import (
    Example,
    Format,
    Place,
    PlainText,
    Row,
    empty_row,
    text_field,
)


class Text(Format):
    """The whole text is learned."""

    name = "text"
    fields = ("text",)

    def fits(self, row: Row) -> bool:
        return "text" in row

    def read(self, row: Row, place: Place) -> Example:
        text = text_field(row, "text", place)
        if not text.strip():
            raise empty_row(place, "text")
        return Example(place, PlainText(text))
