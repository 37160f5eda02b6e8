"""Rows of JSON, JSON lines and CSV files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import Any

from services.trainer.formats.base import Place, bad_row
from services.trainer.formats.columnar import duplicate_column
from services.trainer.formats.json_list import read_json_list, unreadable
from services.trainer.formats.opening import BOM, DataFile, bad_file, lines, opened

_MAX_CSV_FIELD_BYTES = 2**31 - 1


def read_json(file: DataFile) -> Iterator[tuple[Place, Any]]:
    """The rows of a list, or of lines; whichever the file begins as.

    Raises:
        GraftError: BAD_DATA.
    """
    with opened(file) as stream:
        head = stream.read(4096).removeprefix(BOM).lstrip()[:1]
    if head == b"[" or (head != b"{" and file.ending == ".json"):
        return read_json_list(file)
    return _read_objects(file) if file.ending == ".json" else read_jsonl(file)


def read_jsonl(file: DataFile) -> Iterator[tuple[Place, Any]]:
    """The rows of a file with one object per line; empty lines are none.

    Raises:
        GraftError: BAD_DATA.
    """
    for number, line in lines(file):
        if not line.strip():
            continue
        place = Place(file.name, number)
        try:
            yield place, json.loads(line)
        except json.JSONDecodeError as error:
            cut = not line.endswith("\n")
            raise bad_row(
                place,
                f"line {number} is {'cut off or ' if cut else ''}not JSON at column {error.colno} ({error.msg})",
                "Mend the line, or write the file again if its end is missing.",
            ) from None
        except (RecursionError, ValueError) as error:
            why = unreadable(error)
            raise bad_row(
                place, f"line {number} cannot be read ({why})", "Mend the line."
            ) from None


def _read_objects(file: DataFile) -> Iterator[tuple[Place, Any]]:
    """A .json file that begins with an object: lines of objects, or one that wraps the rows."""
    _, first = next(lines(file))
    try:
        json.loads(first)
    except json.JSONDecodeError:
        try:
            with opened(file) as stream:
                whole = json.loads(stream.read().decode("utf-8-sig"))
        except ValueError:
            return read_jsonl(file)
        names = ", ".join(f'"{name}"' for name in list(whole)[:5])
        raise bad_file(
            file.name,
            f"{file.name} is one object with the fields {names}, not a list of rows",
            "Write the rows as a list, or one object per line.",
        ) from None
    return read_jsonl(file)


def read_csv(file: DataFile) -> Iterator[tuple[Place, Any]]:
    """The rows of a CSV file whose first line names the columns.

    Raises:
        GraftError: BAD_DATA.
    """
    csv.field_size_limit(_MAX_CSV_FIELD_BYTES)
    reader = csv.reader((line for _, line in lines(file)), strict=True)
    number = 0
    try:
        header = next(reader, [])
        for index, name in enumerate(header):
            if name in header[:index]:
                raise duplicate_column(file, name)
        for number, values in enumerate((row for row in reader if row), 1):
            place = Place(file.name, number)
            if len(values) != len(header):
                raise bad_row(
                    place,
                    f"it has {len(values)} fields but the header names {len(header)}",
                    "Quote fields that hold commas or line ends.",
                )
            yield place, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise bad_row(
            Place(file.name, number + 1),
            f"it is not CSV ({error}, line {reader.line_num})",
            "Check that every quote is closed; write the file again if its end is missing.",
        ) from None
