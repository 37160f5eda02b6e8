"""Opens files of rows, gzip'd or not, as bytes and as numbered lines of text."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from graft.errors import GraftError, Reason

from services.trainer.formats.base import Place, bad_row

BOM = b"\xef\xbb\xbf"
GZIP = ".gz"


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of rows, and what it is called in messages: its path below what the spec names."""

    path: Path
    name: str

    @property
    def ending(self) -> str:
        """Its kind, for example ".jsonl", without what says that it is compressed."""
        return ending_of(self.path.name)


def ending_of(name: str) -> str:
    """A file name's ending, in small letters and without ".gz"."""
    return Path(name.lower().removesuffix(GZIP)).suffix


def bad_file(name: str, message: str, next_step: str) -> GraftError:
    """The error of a whole file, or of what should be one."""
    return GraftError(Reason.BAD_DATA, message, next_step=next_step, file=name)


@contextmanager
def opened(file: DataFile) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed.

    Raises:
        GraftError: BAD_DATA, when it cannot be opened, or when what is compressed is broken.
    """
    try:
        with _open(file.path) as stream:
            yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise bad_file(
            file.name,
            f"{file.name} is not a whole gzip file ({error})",
            "Write the file again from its source.",
        ) from None
    except PermissionError:
        raise bad_file(
            file.name,
            f"{file.path} may not be read",
            "Let the user that the trainer runs as read it.",
        ) from None


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.name.lower().endswith(GZIP) else path.open("rb")


def lines(file: DataFile) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, with their ends.

    Raises:
        GraftError: BAD_DATA, naming the line and the byte that is not UTF-8.
    """
    offset = 0
    with opened(file) as stream:
        for number, line in enumerate(stream, 1):
            data = line.removeprefix(BOM) if number == 1 else line
            try:
                yield number, data.decode("utf-8")
            except UnicodeDecodeError as error:
                at = offset + len(line) - len(data) + error.start
                raise not_utf8(Place(file.name, number), at, data) from None
            offset += len(line)


def not_utf8(place: Place, at: int, head: bytes = b"") -> GraftError:
    """The error of a row that is in another encoding.

    Args:
        at: the offset in bytes of what is not UTF-8.
        head: the bytes where the text begins, to tell UTF-16 by.
    """
    other = " (it looks like UTF-16)" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
    return bad_row(
        place, f"it is not UTF-8 at byte {at} of the file{other}", "Save the file as UTF-8."
    )
