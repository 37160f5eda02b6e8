"""How large a version may be."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a version.

    A small file is one that is read whole (configuration, text); max_tokenizer_bytes is for one file
    of a tokenizer, max_tensors and max_header_bytes for one file of weights, max_base_tensors for
    all files of a base together.
    """

    max_file_bytes: int = 64 * 1024 * MIB
    max_version_bytes: int = 64 * 1024 * MIB
    max_base_bytes: int = 4 * 1024 * 1024 * MIB
    max_small_file_bytes: int = MIB
    max_tokenizer_bytes: int = 64 * MIB
    max_index_bytes: int = 32 * MIB
    max_files: int = 2000
    max_tensors: int = 100_000
    max_base_tensors: int = 300_000
    max_header_bytes: int = 16 * MIB
    max_rank: int = 512
