"""The Alpaca rows that benchmarks work on: those named, those beside the project, or made-up ones."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

_BESIDE = Path(__file__).parents[2] / "shared/data/alpaca_en_demo.json"


def real_file() -> Path | None:
    """The file that GRAFT_BENCH_DATA names, or the one beside the project; None where there is neither."""
    named = os.environ.get("GRAFT_BENCH_DATA", "")
    path = Path(named) if named else _BESIDE
    return path if named or path.is_file() else None


def alpaca_file(folder: Path) -> Path:
    """The real file, or one of made-up rows in folder."""
    return real_file() or _made_up(folder / "made-up.json")


def _made_up(path: Path) -> Path:
    """Rows of made-up words whose lengths spread as those of instruction data do."""
    draw = random.Random(0)
    words = [
        "".join(draw.choices("abcdefghijklmnoprstuvw", k=draw.randint(2, 9))) for _ in range(3000)
    ]
    rows = [
        {
            "instruction": " ".join(draw.choices(words, k=draw.randint(5, 25))),
            "input": "",
            "output": " ".join(draw.choices(words, k=max(3, int(draw.lognormvariate(4.3, 0.9))))),
        }
        for _ in range(1000)
    ]
    path.write_text(json.dumps(rows), "utf-8")
    return path
