"""The tar of an archive: plain files with names of three forms and nothing else, read in bounded memory.

Not tarfile's reader: that one reads what a header announces into memory, follows links and extensions.
Source of the layout: POSIX ustar, and GNU tar's numbers in base 256 for files above 8 GiB.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from graft.digests import CHUNK_BYTES
from graft.errors import GraftError, Reason

INDEX = "index.json"
_NAME = re.compile(r"index\.json|records/[0-9]{8}\.jsonl|blobs/[0-9a-f]{64}")
_BLOCK = 512
_MOST_PADDING = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the archive."""

    name: str
    size_bytes: int


class ArchiveWriter:
    """Writes members one after the other to an open file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, name: str, data: bytes) -> None:
        """A member with these bytes."""
        self._header(name, len(data))
        self._file.write(data)
        self._pad(len(data))

    def add_file(self, name: str, path: Path, size_bytes: int) -> None:
        """A member with the bytes of a file, which has that size."""
        self._header(name, size_bytes)
        with path.open("rb") as source:
            while chunk := source.read(CHUNK_BYTES):
                self._file.write(chunk)
        self._pad(size_bytes)

    def close(self) -> None:
        """Writes the end; the file stays open."""
        self._file.write(bytes(2 * _BLOCK))

    def _header(self, name: str, size_bytes: int) -> None:
        info = tarfile.TarInfo(name)
        info.size = size_bytes
        self._file.write(info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict"))

    def _pad(self, size_bytes: int) -> None:
        self._file.write(bytes(-size_bytes % _BLOCK))


class ArchiveReader:
    """Reads members one after the other from an open, seekable file.

    Raises:
        GraftError: ARCHIVE_REFUSED for whatever an export does not write.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size_bytes = file.seek(0, 2)
        file.seek(0)
        self._left_bytes = 0
        self._padding_bytes = 0

    def next(self) -> Member | None:
        """The next member; what was not read of the one before is skipped. None at the end."""
        self._file.seek(self._left_bytes + self._padding_bytes, 1)
        self._left_bytes = self._padding_bytes = 0
        block = self._exactly(_BLOCK)
        if not any(block):
            self._end()
            return None
        member = _parse(block)
        if self._file.tell() + member.size_bytes > self._size_bytes:
            raise refused(f"{member.name} is cut off: it is said to have {member.size_bytes} bytes")
        self._left_bytes = member.size_bytes
        self._padding_bytes = -member.size_bytes % _BLOCK
        return member

    def read(self, member: Member, limit_bytes: int) -> bytes:
        """All bytes of the member that next() just answered."""
        if member.size_bytes > limit_bytes:
            raise refused(f"{member.name} has {member.size_bytes} bytes, {limit_bytes} are allowed")
        data = self._exactly(member.size_bytes)
        self._left_bytes = 0
        return data

    def copy(self, member: Member, write: Callable[[bytes], object]) -> str:
        """Passes the member's bytes on in chunks; answers their digest."""
        hasher = hashlib.sha256()
        while self._left_bytes:
            chunk = self._exactly(min(CHUNK_BYTES, self._left_bytes))
            self._left_bytes -= len(chunk)
            hasher.update(chunk)
            write(chunk)
        return "sha256:" + hasher.hexdigest()

    def _end(self) -> None:
        rest_bytes = self._size_bytes - self._file.tell()
        if not _BLOCK <= rest_bytes <= _MOST_PADDING or any(self._exactly(rest_bytes)):
            raise refused("there is something after its end, or its end is cut off")

    def _exactly(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise refused("it is cut off")
        return data


def refused(why: str, next_step: str = "") -> GraftError:
    """ARCHIVE_REFUSED."""
    return GraftError(
        Reason.ARCHIVE_REFUSED,
        f"The archive is not taken: {why}",
        next_step=next_step or "Export the namespace again with `graft export`, and copy it whole.",
    )


def _parse(block: bytes) -> Member:
    if block[:2] == b"\x1f\x8b" or block[:4] in (b"\x28\xb5\x2f\xfd", b"BZh9", b"\xfd7zX"):
        raise refused("it is compressed", "Uncompress it first; an export is a plain tar.")
    blank = block[:148] + b" " * 8 + block[156:]
    if block[257:262] != b"ustar" or _number(block[148:156]) != sum(blank):
        raise refused("it is not a tar, or damaged")
    name = block[:100].rstrip(b"\0").decode("ascii", "replace")
    if block[156:157] not in (b"0", b"\0") or any(block[157:257]) or any(block[345:500]):
        raise refused(f"{name[:100]!r} is not a plain file")
    if _NAME.fullmatch(name) is None:
        raise refused(f"it holds {name[:100]!r}, which no export writes")
    return Member(name, _number(block[124:136]))


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:])
    else:
        text = field.strip(b" \0")
        if not re.fullmatch(rb"[0-7]{1,12}", text):
            raise refused("it has a header whose numbers are none")
        value = int(text, 8)
    if value > 1 << 62:
        raise refused("it has a header whose size is beyond all measure")
    return value
