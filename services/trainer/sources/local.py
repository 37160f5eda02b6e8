"""Data sets on this machine's disks, or on ones that are mounted here."""

from __future__ import annotations

from pathlib import Path

from services.trainer.sources.base import Fetched, Source
from services.trainer.spec import DatasetSource, local_path


class LocalSource(Source):
    """A file or a folder; it is read where it is."""

    def takes(self, source: DatasetSource) -> bool:
        return bool(source.path) and local_path(source.path).exists()

    def fetch(self, source: DatasetSource, folder: Path) -> Fetched:
        return Fetched(local_path(source.path).absolute())
