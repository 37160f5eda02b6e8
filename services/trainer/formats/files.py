"""The data files that a path stands for, their rows one after the other, and their digest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from graft.digests import digest_bytes, digest_file

from services.trainer.formats.base import Place, Row, bad_row, kind_of
from services.trainer.formats.columnar import read_arrow, read_parquet
from services.trainer.formats.opening import GZIP, DataFile, bad_file, ending_of
from services.trainer.formats.selection import select
from services.trainer.formats.text_files import read_csv, read_json

Rows = Iterator[tuple[Place, Row]]
_READERS: dict[str, Callable[[DataFile], Iterator[tuple[Place, Any]]]] = {
    ".json": read_json,
    ".jsonl": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
ENDINGS = (*_READERS, f".json{GZIP}", f".jsonl{GZIP}", f".csv{GZIP}")
ENDINGS_STEP = f"Name a file ending in {', '.join(ENDINGS)}, or a folder of them."


def is_data(name: str) -> bool:
    """Whether a file of that name is read."""
    return name.lower().endswith(ENDINGS)


def data_files(path: Path, label: str = "") -> tuple[list[DataFile], list[str]]:
    """The data files that a path stands for, sorted by name, and the names of those that are left out.

    Args:
        path: a file, or a folder: then its train split where its files' names tell of splits.
        label: put before their names in messages, for a job with several sets.

    Raises:
        GraftError: BAD_DATA, when there are none or the ending is not one we read.
    """
    prefix = f"{label} " if label else ""
    if not path.is_dir():
        return [DataFile(_file(path), prefix + path.name)], []
    names = [found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file()]
    chosen, left_out = select(name for name in names if is_data(name))
    if not chosen:
        raise bad_file(path.name, f"The folder {path} holds no data file", ENDINGS_STEP)
    return [DataFile(path / name, prefix + name) for name in chosen], left_out


def _file(path: Path) -> Path:
    if not path.exists():
        raise bad_file(
            path.name,
            f"There is no file or folder {path}",
            "Check the dataset's path: the worker must see it too.",
        )
    if not is_data(path.name):
        raise bad_file(path.name, f"{path.name} has an ending that is not read", ENDINGS_STEP)
    return path


def read_rows(files: Sequence[DataFile]) -> Rows:
    """All rows of the files, in order.

    Raises:
        GraftError: BAD_DATA.
    """
    for file in files:
        if file.path.stat().st_size == 0:
            raise bad_file(
                file.name, f"{file.name} is empty", "Write at least one example into it."
            )
        for place, row in _READERS[ending_of(file.path.name)](file):
            if not isinstance(row, dict):
                raise bad_row(
                    place, f"it holds {kind_of(row)}, not an object", "Write it as an object."
                )
            yield place, row


def digest_files(path: Path, files: Sequence[DataFile]) -> str:
    """The file's own digest, or for a folder one over its files' names and digests."""
    if not path.is_dir():
        return digest_file(path)
    lines = [f"{file.path.relative_to(path).as_posix()} {digest_file(file.path)}" for file in files]
    return digest_bytes("\n".join(lines).encode())
