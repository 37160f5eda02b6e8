"""Recognizes what a file really is by its bytes: archives, pickles and programs in disguise."""

from __future__ import annotations

import re

TAIL_BYTES = 65_557
HEAD_BYTES = 512
_STARTS = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes it, with a pickle inside"),
    (b"PK\x05\x06", "a zip archive"),
    (b"PK\x07\x08", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive"),
    (b"\x04\x22\x4d\x18", "an lz4 archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"!<arch>\n", "an ar archive"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy file, which can hold a pickle"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"\xca\xfe\xba\xbe", "a program"),
    (b"\xcf\xfa\xed\xfe", "a program"),
    (b"\x00asm", "a program"),
    (b"#!", "a script"),
    (b"<?php", "a script"),
)
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
# Protocol 0 is ASCII: an import, or a mark and then an object.
_TEXT_PICKLE = re.compile(
    rb"(?:[(\]}][a-z]?)*c[A-Za-z_][\w.]*\n[A-Za-z_]\w*\n|\([dlti](?:p\d+\n|c[A-Za-z_])"
)
_TAR_AT, _TAR = 257, b"ustar"
_ZIP_END = b"PK\x05\x06"
_ZIP_END_BYTES = 22


def format_of(head: bytes) -> str:
    """What a file with these first bytes is, "" where they say nothing; 512 bytes tell all."""
    for start, what in _STARTS:
        if head.startswith(start):
            return what
    if _PICKLE.match(head) or _TEXT_PICKLE.match(head):
        return "a pickle"
    if head[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        return "a tar archive"
    return ""


def ends_as_zip(tail: bytes) -> bool:
    """Whether a file with these last bytes opens as a zip archive too, whatever it begins with."""
    at = tail.rfind(_ZIP_END)
    while at >= 0:
        comment_bytes = int.from_bytes(tail[at + 20 : at + 22], "little")
        if at + _ZIP_END_BYTES + comment_bytes == len(tail):
            return True
        at = tail.rfind(_ZIP_END, 0, at)
    return False
