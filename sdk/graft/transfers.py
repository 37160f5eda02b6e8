"""The files of a version on their way to the registry and from it, whichever kind of version it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from graft import folders
from graft.blobs import BlobClient
from graft.common.v1.common_pb2 import File

Transferred = Callable[[str, int, int], None]
"""Called with a file's path, how many bytes of it were moved just now, and its size in bytes."""


async def upload_files(
    blobs: BlobClient, files: Sequence[tuple[File, Path]], progress: Transferred | None
) -> None:
    """Sends what the registry has not yet; what it has counts as moved.

    Raises:
        GraftError: of BlobClient.missing and BlobClient.upload.
    """
    missing = await blobs.missing([file.digest for file, _ in files])
    for file, path in files:
        report = _reporter(file, progress)
        if file.digest in missing:
            await blobs.upload(path, file, report)
        elif report:
            report(file.size_bytes)


async def fetch_files(
    blobs: BlobClient, files: Iterable[File], folder: Path, progress: Transferred | None
) -> None:
    """Writes them into a folder, each at its path.

    Raises:
        GraftError: of BlobClient.fetch; ADAPTER_UNUSABLE for a path that leads out of it.
    """
    for file in files:
        await blobs.fetch(file, folders.inside(folder, file.path), _reporter(file, progress))


def _reporter(file: File, progress: Transferred | None) -> Callable[[int], None] | None:
    if progress is None:
        return None
    return lambda moved_bytes: progress(file.path, moved_bytes, file.size_bytes)
