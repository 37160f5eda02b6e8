"""The table of both sides: for people at the end of `make chaos`, for programs in out/chaos.json."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.chaos.cases import Case

_WIDTH = 46
STOCK, OURS = "stock", "ours"


@dataclass(frozen=True, slots=True)
class Cell:
    """What happened on one side; fails says whether somebody was harmed."""

    fails: bool
    told: str


@dataclass(slots=True)
class Row:
    """Set told to what happened."""

    told: str = ""


@dataclass(slots=True)
class Table:
    """Filled in by the tests."""

    cells: dict[tuple[Case, str], Cell] = field(default_factory=dict)

    @contextmanager
    def ours(self, case: Case) -> Iterator[Row]:
        """Our side of a case: it fails where what is inside does."""
        row = Row()
        try:
            yield row
        except BaseException as error:
            self.cells[case, OURS] = Cell(True, str(error).partition("\n")[0] or repr(error))
            raise
        self.cells[case, OURS] = Cell(False, row.told)

    @property
    def compares(self) -> bool:
        """Whether the stock side was run."""
        return any(side == STOCK for _, side in self.cells)

    def lines(self) -> Iterator[str]:
        """For people."""
        yield _line("case", "stock vLLM", "Graft")
        yield _line("-" * 30, "-" * _WIDTH, "-" * _WIDTH)
        for case in Case:
            sides = [self.cells.get((case, side)) for side in (STOCK, OURS)]
            texts = [textwrap.wrap(_said(cell), _WIDTH) if cell else ["not run"] for cell in sides]
            title = textwrap.wrap(f"{case.value:2} {case.says}", 30)
            for place in range(max(map(len, [title, *texts]))):
                yield _line(*(text[place] if place < len(text) else "" for text in [title, *texts]))

    def write(self, path: Path) -> None:
        """For programs."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = []
        for case in Case:
            row: dict[str, object] = {"case": case.value, "title": case.says}
            for side in (STOCK, OURS):
                cell = self.cells.get((case, side))
                row[side] = None if cell is None else {"fails": cell.fails, "told": cell.told}
            rows.append(row)
        path.write_text(json.dumps(rows, indent=2) + "\n")


def _said(cell: Cell) -> str:
    return f"{'FAILS' if cell.fails else 'right'}: {cell.told}"


def _line(case: str, stock: str, ours: str) -> str:
    return f"{case:<30} | {stock:<{_WIDTH}} | {ours}".rstrip()
