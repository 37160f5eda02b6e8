"""What commands print: tables for people, JSON for scripts, errors with their next step."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from graft.errors import GraftError

# A pipe has no width; rows must not be cut there.
_PIPE_WIDTH = 240


class Output:
    """Standard output and standard error of one command.

    Args:
        as_json: data goes out as JSON only, and notes for people are left out.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.console = _console(stderr=False)
        self.errors = _console(stderr=True)

    @property
    def live(self) -> bool:
        """Whether there is somebody to watch something move."""
        return self.console.is_terminal and not self.as_json

    def json(self, value: Any) -> None:
        """One line of JSON, at once."""
        sys.stdout.write(to_json(value) + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A line for people; nothing when the output is for a script."""
        if not self.as_json:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, renderable: RenderableType) -> None:
        """Something drawn for people."""
        if not self.as_json:
            self.console.print(renderable)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table for people; a cell that is a Text keeps its style."""
        self.show(make_table(columns, rows))

    def fields(self, pairs: Iterable[tuple[str, object]]) -> None:
        """Names and values below each other; pairs without a value are left out."""
        table = Table.grid(padding=(0, 2))
        for name, value in pairs:
            if value not in (None, "", (), {}):
                table.add_row(Text(name, style="bold"), _cell(value))
        self.show(table)

    def warn(self, text: str) -> None:
        """What people should know though it worked, on standard error; also beside JSON."""
        self.errors.print(Text("Warning: ", style="bold yellow") + Text(text), soft_wrap=True)

    def error(self, error: GraftError) -> None:
        """What is wrong and what to do, on standard error."""
        if self.as_json:
            body = {
                "reason": error.reason.value,
                "message": error.message,
                "next_step": error.next_step,
                "metadata": error.metadata,
            }
            sys.stderr.write(to_json({"error": body}) + "\n")
            return
        self.errors.print(Text("Error: ", style="bold red") + Text(error.message), soft_wrap=True)
        if error.next_step:
            self.errors.print(Text("Next:  ", style="bold") + Text(error.next_step), soft_wrap=True)


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table without frame."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


def to_json(value: Any) -> str:
    """One line of JSON of dataclasses, times and plain values."""
    return json.dumps(value, default=_plain, ensure_ascii=False)


def ago(time: datetime | None) -> str:
    """How long ago, in one unit: "3 min ago"."""
    if time is None:
        return ""
    seconds = max(0, int((datetime.now(UTC) - time).total_seconds()))
    for unit, length_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length_s:
            return f"{seconds // length_s} {unit} ago"
    return f"{seconds} s ago"


def size(size_bytes: int) -> str:
    """Bytes in a unit that fits."""
    amount = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def short_digest(digest: str) -> str:
    """The first twelve digits of a digest."""
    return digest.removeprefix("sha256:")[:12]


def _cell(value: object) -> Text:
    return value if isinstance(value, Text) else Text("" if value is None else str(value))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(
        stderr=stderr, highlight=False, width=_PIPE_WIDTH
    )  # fmt: skip
