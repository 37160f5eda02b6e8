"""Reads every row that can be read, and says of the others what is wrong: a job stops at the first, people want all."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from graft.errors import GraftError, Reason

from services.trainer.formats import Example
from services.trainer.formats.detect import FIRST_ROWS, detect, format_named, mixed
from services.trainer.formats.files import data_files, read_rows
from services.trainer.preflight.report import Rows
from services.trainer.spec import DatasetSource

_PROGRESS_EVERY = 2000


class Reading:
    """The rows of a job's sets.

    Args:
        progress: called with a stage in words and the rows read so far.
    """

    def __init__(self, progress: Callable[[str, int], None]) -> None:
        self._progress = progress
        self.rows = 0
        self.formats: Counter[str] = Counter()
        self.unreadable = Rows()
        self.fatal: list[GraftError] = []
        self.first_error: GraftError | None = None

    def examples(self, source: DatasetSource, path: Path) -> Iterator[Example]:
        """The rows of a set that can be read; the others are noted."""
        try:
            yield from self._examples(source, path)
        except GraftError as error:
            if error.reason is not Reason.BAD_DATA:
                raise
            self.fatal.append(error)

    def _examples(self, source: DatasetSource, path: Path) -> Iterator[Example]:
        files, _ = data_files(path)
        rows = read_rows(files)
        if source.max_rows:
            rows = itertools.islice(rows, source.max_rows)
        first = list(itertools.islice(rows, FIRST_ROWS))
        if not first:
            raise GraftError(
                Reason.BAD_DATA,
                f"{path.name} holds no rows",
                next_step="Write at least one example into it.",
                file=path.name,
            )
        chosen = format_named(source.format) if source.format else detect(first)
        self.formats[chosen.name] += 1
        for place, row in itertools.chain(first, rows):
            self.rows += 1
            if self.rows % _PROGRESS_EVERY == 0:
                self._progress(f"reading {place.file}", self.rows)
            try:
                if (other := mixed(row, place, chosen)) is not None:
                    raise other
                yield chosen.read(row, place)
            except GraftError as error:
                self._note(error)

    def _note(self, error: GraftError) -> None:
        self.first_error = self.first_error or error
        self.unreadable.count += 1
        if len(self.unreadable.places) < 10:
            self.unreadable.places.append(error.message)
