"""Reads every row that can be read, and says of the others what is wrong: a job stops at the first, people want all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from graft.errors import GraftError, Reason

from services.trainer.formats import Example
from services.trainer.formats.cleaning import CleaningReport
from services.trainer.formats.load import ReadOptions, RowReader
from services.trainer.preflight.report import Rows
from services.trainer.sources import Fetched

_PROGRESS_EVERY = 2000
_NAMED = 10


class Reading:
    """The rows of a job's sets.

    Args:
        progress: called with a stage in words and the rows read so far.
    """

    def __init__(self, progress: Callable[[str, int], None]) -> None:
        self._progress = progress
        self.rows = 0
        self.formats: Counter[str] = Counter()
        self.cleaning = CleaningReport()
        self.unreadable = Rows()
        self.fatal: list[GraftError] = []
        self.first_error: GraftError | None = None
        self.notes: list[str] = []

    def examples(self, fetch: Callable[[], Fetched], options: ReadOptions) -> Iterator[Example]:
        """The rows of a set that can be read; the others are noted."""
        try:
            reader = RowReader(fetch().path, options)
            for example in reader.examples(self.cleaning, self._note):
                self._count(example.place.file)
                yield example
            self.formats[reader.format] += 1
            self.notes += reader.notes()
        except GraftError as error:
            if error.reason not in (Reason.BAD_DATA, Reason.INVALID_SPEC):
                raise
            self.fatal.append(error)

    def _count(self, file: str) -> None:
        self.rows += 1
        if self.rows % _PROGRESS_EVERY == 0:
            self._progress(f"reading {file}", self.rows)

    def _note(self, error: GraftError) -> None:
        self.rows += 1
        self.first_error = self.first_error or error
        self.unreadable.count += 1
        if len(self.unreadable.places) < _NAMED:
            self.unreadable.places.append(error.message)
