"""How large a version may be."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a version; a small file is one that is read whole (configuration, text)."""

    max_file_bytes: int = 64 * 1024 * MIB
    max_version_bytes: int = 64 * 1024 * MIB
    max_small_file_bytes: int = MIB
    max_tensors: int = 100_000
    max_header_bytes: int = 16 * MIB
    max_rank: int = 512
