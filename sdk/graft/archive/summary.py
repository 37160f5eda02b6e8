"""What an archive holds, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """What was exported; digest is of the archive's index, and with it of all that is in it."""

    namespace: str
    digest: str
    bases: int
    adapters: int
    versions: int
    aliases: int
    blobs: int
    size_bytes: int
