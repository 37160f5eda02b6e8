"""Brings bytes back that a registry lost, from a backup that still has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graft.errors import GraftError, Reason
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.backup.folder import BackupFolder
from services.registry.backup.opening import Opened
from services.registry.backup.progress import Progress
from services.registry.backup.save import copy_blob
from services.registry.blobs.filesystem import FilesystemBlobStore
from services.registry.catalogue.tables import blobs, version_files


@dataclass(frozen=True, slots=True)
class Mended:
    """How many blobs came back, and which the backup lacks too."""

    copied: int
    missing: Sequence[str]


async def mend(registry: Opened, folder: BackupFolder) -> Mended:
    """Copies what versions need and the store lacks; damaged bytes are replaced.

    A registry may serve beside it: bytes appear whole, under their digest, or not at all.

    Raises:
        GraftError: UNAVAILABLE, STORAGE_FULL.
    """

    async def read(connection: AsyncConnection) -> list[tuple[str, int]]:
        query = select(blobs.c.digest, blobs.c.size_bytes).where(
            blobs.c.digest.in_(select(version_files.c.digest))
        )
        return [(row.digest, row.size_bytes) for row in await connection.execute(query)]

    wanted = await registry.database.snapshot(read)
    source = FilesystemBlobStore(folder.blobs)
    progress, copied, missing = Progress("Checking blobs:", len(wanted)), 0, list[str]()
    for digest, size_bytes in wanted:
        if await _is_whole(registry, digest):
            progress.step()
            continue
        if (await source.status(digest)).complete:
            await registry.blobs.delete(digest)
            copied += await copy_blob(source, registry.blobs, digest, size_bytes)
        else:
            missing.append(digest)
        progress.step()
    return Mended(copied, missing)


async def _is_whole(registry: Opened, digest: str) -> bool:
    try:
        async for _ in registry.blobs.read(digest):
            pass
    except GraftError as error:
        if error.reason not in (Reason.BLOB_NOT_FOUND, Reason.DIGEST_MISMATCH):
            raise
        return False
    return True
