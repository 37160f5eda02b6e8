"""A backup as a folder: backup.json, the catalogue that it names, and blobs/ with the bytes.

backup.json appears last, by an atomic rename: a folder without it is no backup, and one that is taken
again is the old backup until the new one is whole.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from graft.errors import GraftError, Reason

FORMAT = 1


@dataclass(frozen=True, slots=True)
class BackupInfo:
    """What a backup holds. digest is that of the catalogue's file; blobs says whether bytes are in it."""

    format: int
    graft: str
    time: str
    catalogue: str
    digest: str
    revision: int
    adapters: int
    bases: int
    versions: int
    blobs: int
    blob_bytes: int
    with_bytes: bool


class BackupFolder:
    """The files of one backup.

    Args:
        root: its folder; made where it does not exist.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def blobs(self) -> Path:
        """The folder of the bytes."""
        return self._root / "blobs"

    def path(self, name: str) -> Path:
        """A file in it."""
        return self._root / name

    def make(self) -> None:
        """Makes the folder, for its owner only: a catalogue holds the key of the page tokens.

        Raises:
            GraftError: INVALID_REQUEST when it cannot be written.
        """
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"{self._root} cannot be made: {error.strerror}",
                next_step="Name a folder on a volume that this user may write to.",
            ) from None

    def write(self, info: BackupInfo) -> None:
        """Makes it a backup; catalogues of the one before are removed."""
        new = self.path("backup.json.new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(asdict(info), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path("backup.json"))
        handle = os.open(self._root, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        for old in self._root.glob("catalogue-*.db*"):
            if old.name != info.catalogue:
                old.unlink()

    def read(self) -> BackupInfo:
        """What is in it.

        Raises:
            GraftError: INVALID_REQUEST when it is no whole backup, NOT_SUPPORTED for a newer format.
        """
        try:
            fields = json.loads(self.path("backup.json").read_text("utf-8"))
            if fields["format"] > FORMAT:
                raise GraftError(
                    Reason.NOT_SUPPORTED,
                    f"{self._root} is a backup of format {fields['format']}, made by Graft "
                    f"{fields['graft']}; this Graft reads up to {FORMAT}",
                    next_step="Restore it with that version of Graft, or a later one.",
                )
            return BackupInfo(**fields)
        except (OSError, ValueError, KeyError, TypeError):
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"{self._root} is no whole backup: its backup.json is missing or cannot be read",
                next_step="Name the folder that `python -m services.registry.backup save FOLDER` "
                "made; one that was broken off is taken again with the same command.",
            ) from None
