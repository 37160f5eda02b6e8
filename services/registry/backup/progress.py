"""Says on a terminal how far a long operation is; nothing where nobody watches."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_EVERY_S = 0.2


class Progress:
    """One line on standard error that is written over and over.

    Args:
        what: is done, for example "Copying".
        total: how many there are.
        stream: where it goes.
    """

    def __init__(self, what: str, total: int, stream: TextIO | None = None) -> None:
        self._what, self._total = what, total
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._done, self._shown_s = 0, 0.0

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        now_s = time.monotonic()
        last = self._done == self._total
        if self._live and (last or now_s - self._shown_s >= _EVERY_S):
            self._shown_s = now_s
            end = "\n" if last else ""
            self._stream.write(f"\r{self._what} {self._done} of {self._total}{end}")
            self._stream.flush()
