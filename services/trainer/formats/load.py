"""Loads a data set: files -> rows -> one format -> examples, with the digest of what was read."""

from __future__ import annotations

import itertools
from pathlib import Path

from graft.errors import GraftError, Reason

from services.trainer.formats.base import Examples
from services.trainer.formats.detect import (
    FIRST_ROWS,
    check_objective,
    detect,
    format_named,
    mixed,
)
from services.trainer.formats.files import data_files, digest_files, read_rows


def load_examples(path: Path, format_name: str | None = None, max_rows: int = 0) -> Examples:
    """Reads a file, or every data file of a folder.

    Args:
        path: .json (a list, or lines), .jsonl, .csv, .parquet, or a folder of these.
        format_name: for example "alpaca"; None finds it out from the first rows.
        max_rows: only so many rows; 0 for all.

    Raises:
        GraftError: BAD_DATA, naming the file, the row and the field, and what to do.
    """
    files, _ = data_files(path)
    rows = read_rows(files)
    if max_rows:
        rows = itertools.islice(rows, max_rows)
    first = list(itertools.islice(rows, FIRST_ROWS))
    if not first:
        raise GraftError(
            Reason.BAD_DATA,
            f"{path} holds no rows",
            next_step="Write at least one example into it.",
            file=path.name,
        )
    chosen = format_named(format_name) if format_name else detect(first)
    examples = []
    for place, row in itertools.chain(first, rows):
        check_objective(row, place)
        if (error := mixed(row, place, chosen)) is not None:
            raise error
        examples.append(chosen.read(row, place))
    return Examples(examples, chosen.name, digest_files(path, files))
