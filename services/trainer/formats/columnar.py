"""Rows of Parquet and Arrow files, a few at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from services.trainer.formats.base import Place
from services.trainer.formats.opening import DataFile, bad_file, opened

if TYPE_CHECKING:
    import pyarrow as arrow

_ROWS_AT_ONCE = 1024
_ARROW_FILE = b"ARROW1"


def read_parquet(file: DataFile) -> Iterator[tuple[Place, Any]]:
    """The rows of a Parquet file.

    Raises:
        GraftError: BAD_DATA.
    """
    from pyarrow import parquet  # Takes a quarter of a second and is rarely needed.

    with _errors(file, "Parquet"), opened(file) as stream, parquet.ParquetFile(stream) as table:
        _check_columns(file, table.schema_arrow.names)
        yield from _rows(file, table.iter_batches(_ROWS_AT_ONCE))


def read_arrow(file: DataFile) -> Iterator[tuple[Place, Any]]:
    """The rows of an Arrow IPC file or stream; `datasets` caches sets as streams.

    Raises:
        GraftError: BAD_DATA.
    """
    import pyarrow as arrow

    with _errors(file, "Arrow"), opened(file) as stream:
        is_file = stream.read(len(_ARROW_FILE)) == _ARROW_FILE
        stream.seek(0)
        if is_file:
            whole = arrow.ipc.open_file(stream)
            _check_columns(file, whole.schema.names)
            batches = (whole.get_batch(index) for index in range(whole.num_record_batches))
        else:
            reader = arrow.ipc.open_stream(stream)
            _check_columns(file, reader.schema.names)
            batches = iter(reader)
        yield from _rows(file, batches)


def _rows(file: DataFile, batches: Iterator[arrow.RecordBatch]) -> Iterator[tuple[Place, Any]]:
    number = 0
    for batch in batches:
        for begin in range(0, batch.num_rows, _ROWS_AT_ONCE):
            for row in batch.slice(begin, _ROWS_AT_ONCE).to_pylist():
                number += 1
                yield Place(file.name, number), row


def _check_columns(file: DataFile, names: list[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise duplicate_column(file, name)


def duplicate_column(file: DataFile, name: str) -> Exception:
    """The error of a file in which a name stands for two columns."""
    return bad_file(
        file.name,
        f'{file.name} has more than one column "{name}"',
        "Rename or remove one of them.",
    )


@contextmanager
def _errors(file: DataFile, kind: str) -> Iterator[None]:
    import pyarrow as arrow

    try:
        yield
    except (arrow.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise bad_file(
            file.name, f"{file.name} is not a whole {kind} file ({reason})", "Write the file again."
        ) from None
