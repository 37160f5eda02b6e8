"""A command at a terminal of its own: what it shows is read, and keys are pressed, as a person would."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

CTRL_C = "\x03"
CTRL_D = "\x04"
# The terminal becomes the session's controlling one, so that Ctrl-C is a signal.
_AT_TERMINAL = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from graft.cli.app import main
main()
"""


class Terminal:
    """`python -m graft.cli ARGUMENTS` behind a pseudo terminal; use as an async context manager.

    Args:
        arguments: of graft.
        environment: all of the process' variables.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._main, secondary = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _AT_TERMINAL, *arguments],
            stdin=secondary,
            stdout=secondary,
            stderr=secondary,
            env={**environment, "COLUMNS": "120", "TERM": "xterm"},
            start_new_session=True,
        )
        os.close(secondary)
        os.set_blocking(self._main, False)
        self.shown = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._main)

    def press(self, keys: str) -> None:
        """Types keys."""
        os.write(self._main, keys.encode())

    async def see(self, text: str, within_s: float = 60.0) -> None:
        """Waits until text has been shown after what was seen last; then forgets up to it."""
        try:
            async with asyncio.timeout(within_s):
                while text not in self.shown:
                    self._read()
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{text!r} was not shown, but: {self.shown}") from None
        self.shown = self.shown.partition(text)[2]

    async def ended(self, within_s: float = 60.0) -> int:
        """Waits for the end; answers with the exit code."""
        async with asyncio.timeout(within_s):
            while self.process.poll() is None:
                self._read()
                await asyncio.sleep(0.01)
        self._read()
        return self.process.wait()

    def _read(self) -> None:
        try:
            while data := os.read(self._main, 65536):
                self.shown += data.decode(errors="replace")
        except (BlockingIOError, OSError):
            # Nothing to read now, or (EIO) nobody at the other end any more.
            return
