"""Reads a data set: files -> rows -> one format -> examples, with the digest of what was read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from graft.errors import GraftError, Reason

from services.trainer.formats.base import Example, Examples, Format, Place, Row, is_empty_row
from services.trainer.formats.cleaning import CleaningReport
from services.trainer.formats.columns import Columns
from services.trainer.formats.detect import FIRST_ROWS, Membership, detect, format_named
from services.trainer.formats.files import data_files, digest_files, read_rows
from services.trainer.formats.placeholders import Placeholders


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a set's rows are read.

    Attributes:
        format: for example "alpaca"; None finds it out from the first rows.
        columns: what the format's fields are called in the file.
        placeholders: what "{{name}}" is replaced with in every text.
        max_rows: only so many rows of the file; 0 for all.
        drop_empty: whether rows with an empty field that must not be empty are left out, not an error.
        where: the spec's field that names the set, for messages.
        label: put before the names of its files, for a job with several sets.
    """

    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    placeholders: Mapping[str, str] = field(default_factory=dict)
    max_rows: int = 0
    drop_empty: bool = False
    where: str = "dataset"
    label: str = ""


_DEFAULTS = ReadOptions()


class RowReader:
    """One set, row by row; it can be read again and again.

    Args:
        path: a file (.json, .jsonl, .csv, .parquet, .arrow), or a folder of them.
        options: how it is read.

    Raises:
        GraftError: BAD_DATA, when there is nothing to read; INVALID_SPEC for impossible columns.
    """

    def __init__(self, path: Path, options: ReadOptions = _DEFAULTS) -> None:
        self.path, self.options = path, options
        self.files, self._left_out = data_files(path, options.label)
        self._columns = Columns(options.columns, f"{options.where}.columns")
        self._placeholders = self._new_placeholders()
        self._format = format_named(options.format) if options.format else None

    def __iter__(self) -> Iterator[Example]:
        return self.examples(CleaningReport())

    @property
    def format(self) -> str:
        """The format of its rows; reads the first ones where the spec does not name it.

        Raises:
            GraftError: BAD_DATA.
        """
        if self._format is None:
            self._begin(self._rows())
        assert self._format is not None
        return self._format.name

    def examples(
        self, cleaning: CleaningReport, on_bad_row: Callable[[GraftError], None] | None = None
    ) -> Iterator[Example]:
        """All examples in order; empty ones that are left out go to the report.

        Args:
            on_bad_row: takes the error of a row that cannot be read, which then is passed over; without
                it the first one ends the reading.

        Raises:
            GraftError: BAD_DATA, naming the file, the row and the field, and what to do.
        """
        self._placeholders = self._new_placeholders()
        rows = self._rows()
        first = self._begin(rows)
        chosen = self._format
        assert chosen is not None
        membership = Membership(chosen, declared=self.options.format is not None)
        if self.options.drop_empty:
            cleaning.declare("drop_empty")
        for place, row in itertools.chain(first, rows):
            renamed = self._columns.apply(row)
            try:
                membership.check(renamed, place)
                example = chosen.read(renamed, place)
            except GraftError as error:
                if self.options.drop_empty and is_empty_row(error):
                    cleaning.remove("drop_empty", place)
                elif on_bad_row is not None:
                    on_bad_row(error)
                else:
                    raise
                continue
            content = self._placeholders.fill(example.content)
            yield example if content is example.content else Example(place, content)

    def notes(self) -> Iterator[str]:
        """What is odd in what was read, a sentence each."""
        if self._left_out:
            named = ", ".join(self._left_out[:3])
            more = len(self._left_out) - 3
            rest = f" and {more} more" if more > 0 else ""
            yield (
                f"{self.path.name} has splits, so {named}{rest} were left out: name them as "
                "dataset.eval_sources to evaluate with them."
            )
        yield from self._placeholders.notes()

    def digest(self) -> str:
        """Of the files' bytes, whatever is made of them."""
        return digest_files(self.path, self.files)

    def _new_placeholders(self) -> Placeholders:
        return Placeholders(self.options.placeholders, f"{self.options.where}.placeholders")

    def _rows(self) -> Iterator[tuple[Place, Row]]:
        rows = read_rows(self.files)
        return itertools.islice(rows, self.options.max_rows) if self.options.max_rows else rows

    def _begin(self, rows: Iterator[tuple[Place, Row]]) -> list[tuple[Place, Row]]:
        """Takes the first rows, and finds out the format where it is not known."""
        first = list(itertools.islice(rows, FIRST_ROWS))
        if not first:
            raise GraftError(
                Reason.BAD_DATA,
                f"{self.path} holds no rows",
                next_step="Write at least one example into it.",
                file=self.path.name,
            )
        self._columns.check_rows(first)
        if self._format is None:
            self._format = self._detect(first)
        self._columns.check_format(self._format)
        return first

    def _detect(self, first: list[tuple[Place, Row]]) -> Format:
        return detect([(place, self._columns.apply(row)) for place, row in first])


def load_examples(
    path: Path,
    format_name: str | None = None,
    max_rows: int = 0,
    *,
    columns: Mapping[str, str] | None = None,
    placeholders: Mapping[str, str] | None = None,
) -> Examples:
    """Reads a file, or the data files of a folder; see ReadOptions.

    Raises:
        GraftError: BAD_DATA, naming the file, the row and the field, and what to do.
    """
    reader = RowReader(path, ReadOptions(format_name, columns or {}, placeholders or {}, max_rows))
    rows = list(reader)
    return Examples(rows, reader.format, reader.digest(), tuple(reader.notes()))


def iterate(path: Path, options: ReadOptions = _DEFAULTS) -> Iterator[Example]:
    """The examples of a file or folder, read as they are asked for.

    Raises:
        GraftError: BAD_DATA, when the row is reached that is wrong.
    """
    return iter(RowReader(path, options))
