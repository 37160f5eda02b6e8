"""A JSON file that is one list of rows, read row by row: a broken one can be named, and memory holds few."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from graft.errors import GraftError

from services.trainer.formats.base import Place, bad_row
from services.trainer.formats.opening import DataFile, not_utf8, opened

_SPACE = re.compile(r"[ \t\r\n]*")
_MARK = "\ufeff"
_READ_BYTES = 128 * 1024
# An escape that the text read so far cuts off is reported so many characters before its end.
_CUT_MARGIN = 12


def read_json_list(file: DataFile) -> Iterator[tuple[Place, Any]]:
    """The list's elements.

    Raises:
        GraftError: BAD_DATA, with the row, the line and the column, or the byte that is not UTF-8.
    """
    with opened(file) as stream:
        yield from _ListScanner(file.name, _Text(stream)).rows()


class _Text:
    """A stretch of the file's text that moves on; knows where in the file it begins.

    Attributes:
        text: the stretch.
        ended: whether nothing can be read after it.
        bad_byte: offset of the first byte that is not UTF-8, at which the text ends; None for none.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._read_bytes = 0
        self._lines_before, self._columns_before = 0, 0
        self.text, self.ended = "", False
        self.bad_byte: int | None = None

    def more(self, position: int) -> int:
        """Drops what is before position and reads on; returns where position is now."""
        newlines = self.text.count("\n", 0, position)
        if newlines:
            self._lines_before += newlines
            self._columns_before = position - self.text.rfind("\n", 0, position) - 1
        else:
            self._columns_before += position
        # Twice as much for a row that is longer than what was read, so that long rows are not read in squares.
        data = self._stream.read(max(_READ_BYTES, len(self.text) - position))
        self.text = self.text[position:] + self._decode(data)
        return 0

    def _decode(self, data: bytes) -> str:
        begin = self._read_bytes - len(self._decoder.getstate()[0])
        self._read_bytes += len(data)
        self.ended = not data
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            self.ended, self.bad_byte = True, begin + error.start
            text = error.object[: error.start].decode("utf-8")
        return text.removeprefix(_MARK) if begin == 0 else text

    def line_and_column(self, position: int) -> tuple[int, int]:
        """Where in the file a position of the text is, both from 1."""
        newlines = self.text.count("\n", 0, position)
        if newlines:
            return self._lines_before + newlines + 1, position - self.text.rfind("\n", 0, position)
        return self._lines_before + 1, self._columns_before + position + 1


class _ListScanner:
    def __init__(self, name: str, source: _Text) -> None:
        self._name = name
        self._source = source
        self._decoder = json.JSONDecoder()

    def rows(self) -> Iterator[tuple[Place, Any]]:
        """Each element with its place."""
        number = 1
        mark, position = self._mark(0, number)
        if mark != "[":
            raise self._broken(number, position, "a list of rows should begin here")
        mark, position = self._mark(position + 1, number)
        while mark != "]":
            value, position = self._element(position, number)
            yield Place(self._name, number), value
            mark, position = self._mark(position, number)
            if mark == ",":
                number += 1
                _, position = self._mark(position + 1, number)
            elif mark != "]":
                number += 1
                raise self._broken(number, position, "a comma or the list's end should be here")
        mark, position = self._mark(position + 1, number)
        if mark:
            raise self._broken(number, position, "there is more after the list's end")

    def _mark(self, position: int, number: int) -> tuple[str, int]:
        """The next character that is not white space, "" at the end, and where it is."""
        while True:
            match = _SPACE.match(self._source.text, position)
            assert match is not None
            position = match.end()
            if position < len(self._source.text):
                return self._source.text[position], position
            if self._source.ended:
                self._check_encoding(number)
                return "", position
            position = self._source.more(position)

    def _element(self, position: int, number: int) -> tuple[Any, int]:
        while True:
            try:
                return self._decoder.raw_decode(self._source.text, position)
            except json.JSONDecodeError as error:
                if not self._may_go_on(error):
                    raise self._broken(number, error.pos, error.msg) from None
            except (RecursionError, ValueError) as error:
                raise self._broken(number, position, unreadable(error)) from None
            if self._source.ended:
                self._check_encoding(number)
            position = self._source.more(position)

    def _may_go_on(self, error: json.JSONDecodeError) -> bool:
        """Whether the element is only cut off where the text that was read ends."""
        if self._source.ended:
            return self._source.bad_byte is not None
        return "Unterminated" in error.msg or error.pos > len(self._source.text) - _CUT_MARGIN

    def _check_encoding(self, number: int) -> None:
        if self._source.bad_byte is not None:
            raise not_utf8(Place(self._name, number), self._source.bad_byte)

    def _broken(self, number: int, position: int, message: str) -> GraftError:
        line, column = self._source.line_and_column(position)
        at_end = self._source.ended and position >= len(self._source.text.rstrip())
        cut = at_end or "Unterminated" in message
        what = "the file is cut off" if cut else "it is not JSON"
        return bad_row(
            Place(self._name, number),
            f"{what} at line {line}, column {column} ({message})",
            "Write the file again from its source." if cut else "Mend that line.",
        )


def unreadable(error: Exception) -> str:
    """Why JSON could not be read, where it is not a matter of its grammar."""
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
