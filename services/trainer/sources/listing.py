"""What is fetched of a place that lists its files: one file, a folder, or those that a pattern fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from services.trainer.formats.files import ENDINGS_STEP, is_data
from services.trainer.formats.selection import select
from services.trainer.sources.base import no_data

_PATTERN = frozenset("*?[")
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Listed:
    """A file of a place: its path there, with "/", its size, and what changes when its bytes do."""

    name: str
    size_bytes: int
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is fetched of a place.

    Attributes:
        files: in the order of their names.
        root: the file that is meant, or the folder that all of them are below; "" for the place's own.
        left_out: names of files of splits that are not for training.
    """

    files: list[Listed]
    root: str
    left_out: list[str]

    def words(self) -> str:
        """How much that is, for people."""
        size_mb = sum(file.size_bytes for file in self.files) / 1e6
        count = f"{len(self.files)} {'file' if len(self.files) == 1 else 'files'}"
        others = f", without {len(self.left_out)} of other splits" if self.left_out else ""
        return f"{count} ({size_mb:,.1f} MB{others})"


def choose(where: str, files: Sequence[Listed], path: str) -> Choice:
    """The files to fetch; of a folder with splits those of the train split, see selection.py.

    Args:
        where: the place, for errors.
        path: a file, a folder, or a pattern with "*"; "" for all.

    Raises:
        GraftError: BAD_DATA, when there is no such file.
    """
    safe = [file for file in files if _stays_inside(file.name)]
    named = [file for file in safe if file.name == path]
    if named:
        if not is_data(path):
            raise no_data(where, f"{path} has an ending that is not read", ENDINGS_STEP)
        return Choice(named, path, [])
    below = {file.name: file for file in safe if _is_meant(file.name, path) and is_data(file.name)}
    chosen, left_out = select(below)
    if not chosen:
        there = ", ".join(file.name for file in safe[:_MOST_NAMED])
        raise no_data(where, f"there is no data file (there is {there or 'nothing'})", ENDINGS_STEP)
    return Choice([below[name] for name in chosen], literal_folder(path), left_out)


def literal_folder(path: str) -> str:
    """The folder that all files are below which a path may mean: itself, or what is before a pattern."""
    parts = PurePosixPath(path).parts
    patterns = (index for index, part in enumerate(parts) if _PATTERN & set(part))
    return "/".join(parts[: next(patterns, len(parts))])


def _is_meant(name: str, path: str) -> bool:
    if _PATTERN & set(path):
        return fnmatchcase(name, path)
    return not path or name.startswith(f"{path}/")


def _stays_inside(name: str) -> bool:
    pure = PurePosixPath(name)
    return not pure.is_absolute() and ".." not in pure.parts and "\\" not in name
