"""Renames a file's columns to the fields of a format, as dataset.columns says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from graft.errors import GraftError, Reason

from services.trainer.formats.base import Format, Place, Row, bad_row
from services.trainer.formats.detect import FORMATS


class Columns:
    """The mapping of one set.

    Args:
        columns: the file's column by the format's field.
        where: the spec's field, for errors.

    Raises:
        GraftError: INVALID_SPEC, when no format has such a field.
    """

    def __init__(self, columns: Mapping[str, str], where: str) -> None:
        self._columns = dict(columns)
        self._sources = frozenset(self._columns.values())
        self._where = where
        self._check({name for known in FORMATS for name in known.fields}, "any format")

    def apply(self, row: Row) -> Row:
        """The row under the format's names; columns that are not named stay as they are."""
        if not self._columns:
            return row
        renamed = {
            name: value
            for name, value in row.items()
            if name not in self._sources and name not in self._columns
        }
        for field, column in self._columns.items():
            if column in row:
                renamed[field] = row[column]
        return renamed

    def check_format(self, chosen: Format) -> None:
        """Checks that the fields are of the set's format.

        Raises:
            GraftError: INVALID_SPEC.
        """
        self._check(chosen.fields, chosen.name)

    def check_rows(self, rows: Sequence[tuple[Place, Row]]) -> None:
        """Checks that the first rows of the file have the columns.

        Raises:
            GraftError: BAD_DATA, with the columns that there are.
        """
        there = dict.fromkeys(name for _, row in rows for name in row)
        for field, column in self._columns.items():
            if column not in there:
                names = ", ".join(f'"{name}"' for name in there) or "none"
                raise bad_row(
                    rows[0][0],
                    f'{self._where} reads "{field}" from a column "{column}", which it does not have '
                    f"(it has {names})",
                    f"Name one of its columns in {self._where}.",
                    column,
                )

    def _check(self, known: Iterable[str], whose: str) -> None:
        names = list(known)
        for field in self._columns:
            if field not in names:
                raise GraftError(
                    Reason.INVALID_SPEC,
                    f'{self._where} names "{field}", which is no field of {whose}',
                    next_step="Write the format's field first and the file's column second; fields are "
                    f"{', '.join(sorted(names))}.",
                    field=self._where,
                )
