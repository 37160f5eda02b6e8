"""A JSON file that is one list of rows, read row by row so that a broken one can be named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from graft.errors import GraftError

from services.trainer.formats.base import Place, bad_row

_SPACE = re.compile(r"[ \t\r\n]*")


def read_json_list(path: Path) -> Iterator[tuple[Place, Any]]:
    """The list's elements.

    Raises:
        GraftError: BAD_DATA, with the row, the line and the column, or the byte that is not UTF-8.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The bytes before the bad one are good, and as many rows as end there come before its row.
        before = _ListScanner(path, data[: error.start].decode("utf-8", "ignore"))
        raise bad_row(
            Place(path.name, before.count_rows() + 1),
            f"it is not UTF-8 at byte {error.start} of the file",
            "Save the file as UTF-8.",
        ) from None
    yield from _ListScanner(path, text).rows()


class _ListScanner:
    def __init__(self, path: Path, text: str) -> None:
        self._name = path.name
        self._text = text
        self._decoder = json.JSONDecoder()

    def rows(self) -> Iterator[tuple[Place, Any]]:
        """Each element with its place."""
        position, number = self._skip(0), 1
        if self._text[position : position + 1] != "[":
            raise self._broken(1, position, "a list of rows should begin here")
        position = self._skip(position + 1)
        if self._text[position : position + 1] == "]":
            self._check_end(position, number)
            return
        while True:
            value, position = self._element(position, number)
            yield Place(self._name, number), value
            position = self._skip(position)
            mark = self._text[position : position + 1]
            if mark == "]":
                self._check_end(position, number)
                return
            number += 1
            if mark != ",":
                raise self._broken(number, position, "a comma or the list's end should be here")
            position = self._skip(position + 1)

    def count_rows(self) -> int:
        """How many elements end before the text is broken or ends."""
        count = 0
        with suppress(GraftError):  # Cut on purpose.
            for place, _ in self.rows():
                count = place.row
        return count

    def _element(self, position: int, number: int) -> tuple[Any, int]:
        try:
            return self._decoder.raw_decode(self._text, position)
        except json.JSONDecodeError as error:
            raise self._broken(number, error.pos, error.msg) from None

    def _skip(self, position: int) -> int:
        match = _SPACE.match(self._text, position)
        assert match is not None
        return match.end()

    def _check_end(self, position: int, number: int) -> None:
        rest = self._skip(position + 1)
        if rest < len(self._text):
            raise self._broken(number, rest, "there is more after the list's end")

    def _broken(self, number: int, position: int, message: str) -> GraftError:
        line = self._text.count("\n", 0, position) + 1
        column = position - self._text.rfind("\n", 0, position)
        cut = position >= len(self._text.rstrip()) or "Unterminated" in message
        what = "the file is cut off" if cut else "it is not JSON"
        return bad_row(
            Place(self._name, number),
            f"{what} at line {line}, column {column} ({message})",
            "Write the file again from its source." if cut else "Mend that line.",
        )
