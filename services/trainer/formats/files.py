"""Files of rows: finds them, reads them one row after the other, and says where one is broken."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from graft.digests import digest_bytes, digest_file
from graft.errors import GraftError, Reason

from services.trainer.formats.base import Place, Row, bad_row, kind_of
from services.trainer.formats.json_list import read_json_list

Rows = Iterator[tuple[Place, Row]]
_BOM = b"\xef\xbb\xbf"
_MAX_CSV_FIELD_BYTES = 2**31 - 1


def data_files(path: Path) -> list[Path]:
    """The data files that a path stands for, sorted by name.

    Raises:
        GraftError: BAD_DATA, when there are none or the ending is not one we read.
    """
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in _READERS)
        if not found:
            raise bad_file(path, f"The folder {path} holds no data file", _ENDINGS_STEP)
        return found
    if not path.exists():
        raise bad_file(
            path,
            f"There is no file or folder {path}",
            "Check the dataset's path: the worker must see it too.",
        )
    if path.suffix.lower() not in _READERS:
        raise bad_file(path, f"{path.name} has an ending that is not read", _ENDINGS_STEP)
    return [path]


def read_rows(files: Iterable[Path]) -> Rows:
    """All rows of the files, in order.

    Raises:
        GraftError: BAD_DATA.
    """
    for path in files:
        if path.stat().st_size == 0:
            raise bad_file(path, f"{path.name} is empty", "Write at least one example into it.")
        for place, row in _READERS[path.suffix.lower()](path):
            if not isinstance(row, dict):
                raise bad_row(
                    place, f"it holds {kind_of(row)}, not an object", "Write it as an object."
                )
            yield place, row


def digest_files(path: Path, files: list[Path]) -> str:
    """The file's own digest, or for a folder one over its files' names and digests."""
    if not path.is_dir():
        return digest_file(path)
    lines = [f"{file.relative_to(path).as_posix()} {digest_file(file)}" for file in files]
    return digest_bytes("\n".join(lines).encode())


def bad_file(path: Path, message: str, next_step: str) -> GraftError:
    """The error of a whole file."""
    return GraftError(Reason.BAD_DATA, message, next_step=next_step, file=path.name)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, with their ends."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            data = line.removeprefix(_BOM) if number == 1 else line
            try:
                yield number, data.decode("utf-8")
            except UnicodeDecodeError as error:
                at = offset + len(line) - len(data) + error.start
                raise bad_row(
                    Place(path.name, number),
                    f"it is not UTF-8 at byte {at} of the file",
                    "Save the file as UTF-8.",
                ) from None
            offset += len(line)


def _read_jsonl(path: Path) -> Iterator[tuple[Place, Any]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        place = Place(path.name, number)
        try:
            yield place, json.loads(line)
        except json.JSONDecodeError as error:
            cut = not line.endswith("\n")
            raise bad_row(
                place,
                f"line {number} is {'cut off or ' if cut else ''}not JSON at column {error.colno} ({error.msg})",
                "Mend the line, or write the file again if its end is missing.",
            ) from None


def _read_json(path: Path) -> Iterator[tuple[Place, Any]]:
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(_BOM).lstrip()[:1]
    return read_json_list(path) if head != b"{" else _read_json_objects(path)


def _read_json_objects(path: Path) -> Iterator[tuple[Place, Any]]:
    """A .json file that begins with an object: lines of objects, or one that wraps the rows."""
    _, first = next(_lines(path))
    try:
        json.loads(first)
    except json.JSONDecodeError:
        try:
            whole = json.loads(path.read_text("utf-8-sig"))
        except ValueError:
            return _read_jsonl(path)
        names = ", ".join(f'"{name}"' for name in list(whole)[:5])
        raise bad_file(
            path,
            f"{path.name} is one object with the fields {names}, not a list of rows",
            "Write the rows as a list, or one object per line.",
        ) from None
    return _read_jsonl(path)


def _read_csv(path: Path) -> Iterator[tuple[Place, Any]]:
    csv.field_size_limit(_MAX_CSV_FIELD_BYTES)
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    number = 0
    try:
        header = next(reader)
        for number, values in enumerate((row for row in reader if row), 1):
            place = Place(path.name, number)
            if len(values) != len(header):
                raise bad_row(
                    place,
                    f"it has {len(values)} fields but the header names {len(header)}",
                    "Quote fields that hold commas or line ends.",
                )
            yield place, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise bad_row(
            Place(path.name, number + 1),
            f"it is not CSV ({error}, line {reader.line_num})",
            "Check that every quote is closed; write the file again if its end is missing.",
        ) from None


def _read_parquet(path: Path) -> Iterator[tuple[Place, Any]]:
    import pyarrow as arrow  # Takes a quarter of a second and is rarely needed.
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Place(path.name, number), row
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise bad_file(
            path, f"{path.name} is not a whole Parquet file ({reason})", "Write the file again."
        ) from None


_READERS: dict[str, Callable[[Path], Iterator[tuple[Place, Any]]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
_ENDINGS_STEP = f"Name a file ending in {', '.join(_READERS)}, or a folder of them."
