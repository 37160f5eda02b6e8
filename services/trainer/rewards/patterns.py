"""Regular expressions that take a time linear in the text, whatever pattern and text are: RE2's.

The backtracking of Python's own can take longer than anybody waits, on a text of thirty characters.
"""

from __future__ import annotations

import re2

_MOST_CHARACTERS = 4096
# Bounds the compiled program to about 20,000 instructions, and with it the time per character of text.
_MOST_MEMORY_BYTES = 512 * 1024


class Pattern:
    """A compiled pattern.

    Args:
        text: in RE2's syntax, which has no back references and no look-around.

    Raises:
        ValueError: saying in words what is wrong with it.
    """

    def __init__(self, text: str) -> None:
        if len(text) > _MOST_CHARACTERS:
            raise ValueError(f"it has {len(text)} characters, more than {_MOST_CHARACTERS}")
        options = re2.Options()
        options.log_errors = False
        options.never_capture = True
        options.max_mem = _MOST_MEMORY_BYTES
        try:
            self._compiled = re2.compile(text, options)
        except (re2.error, UnicodeEncodeError) as error:
            raise ValueError(_reason(error)) from None

    def steps(self, text: str) -> int:
        """The most that a match can take: instructions times characters."""
        return int(self._compiled.programsize) * (len(text) + 1)

    def is_in(self, text: str) -> bool:
        """Whether it matches somewhere in the text."""
        return self._compiled.search(_encodable(text)) is not None

    def is_all_of(self, text: str) -> bool:
        """Whether it matches the whole text."""
        return self._compiled.fullmatch(_encodable(text)) is not None


def _encodable(text: str) -> bytes:
    """UTF-8, with "?" for half a character, which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace")


def _reason(error: Exception) -> str:
    what = error.args[0]
    return what.decode("utf-8", "replace") if isinstance(what, bytes) else str(error)
