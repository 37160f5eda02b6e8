"""Takes a backup beside a registry that goes on serving.

The catalogue comes first, as it is at one moment, and then the bytes that it names: a version that is
committed meanwhile is in neither, and one that is in the catalogue has its bytes. Only collection can
take bytes away between the two; then the catalogue is taken again, and only what is new is copied.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from graft.digests import digest_file
from graft.errors import GraftError, Reason
from graft.version import VERSION
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.backup.folder import FORMAT, BackupFolder, BackupInfo
from services.registry.backup.opening import Opened
from services.registry.backup.progress import each
from services.registry.backup.rows import copy_rows
from services.registry.blobs.base import BlobStore
from services.registry.blobs.filesystem import FilesystemBlobStore
from services.registry.catalogue.blob_index import PRESENT
from services.registry.catalogue.database import Database
from services.registry.catalogue.sqlite import open_sqlite
from services.registry.catalogue.tables import (
    adapters,
    bases,
    blobs,
    revisions,
    version_files,
    versions,
)

_TRIES = 5
_LOST = (Reason.BLOB_NOT_FOUND, Reason.DIGEST_MISMATCH)


@dataclass(frozen=True, slots=True)
class Saved:
    """What became of a backup; lost are bytes that a version needs and the registry itself lacks."""

    info: BackupInfo
    copied: int
    lost: Sequence[str]


async def save(source: Opened, folder: BackupFolder, with_bytes: bool = True) -> Saved:
    """Takes a backup; bytes that the folder has already are not copied again.

    Args:
        source: the registry.
        folder: where it goes; a backup that is there is replaced once the new one is whole.
        with_bytes: False for the catalogue alone, where the object store keeps its own copies.

    Raises:
        GraftError: UNAVAILABLE, STORAGE_FULL; INVALID_REQUEST when the folder cannot be written.
    """
    await asyncio.to_thread(folder.make)
    copied, lost_before = 0, frozenset[str]()
    for _ in range(_TRIES):
        name = f"catalogue-{uuid.uuid4().hex[:12]}.db"
        wanted = await _save_catalogue(source.database, folder.path(name))
        if not with_bytes:
            return await _finish(folder, name, wanted, copied, (), with_bytes)
        target = FilesystemBlobStore(folder.blobs)
        done, lost = await _copy_all(source.blobs, target, wanted.sizes)
        copied += done
        lost &= wanted.needed
        # What is gone though the catalogue still names it is not being collected: it is lost.
        if lost <= lost_before:
            return await _finish(folder, name, wanted, copied, sorted(lost), with_bytes)
        lost_before = frozenset(lost)
        folder.path(name).unlink()
    raise GraftError(
        Reason.UNAVAILABLE,
        f"Bytes went away during each of {_TRIES} tries of a backup",
        next_step="Let the collection end (`graft gc`), then take the backup again.",
    )


@dataclass(frozen=True, slots=True)
class _Wanted:
    sizes: Mapping[str, int]
    needed: frozenset[str]
    revision: int
    adapters: int
    bases: int
    versions: int


async def _save_catalogue(database: Database, path: Path) -> _Wanted:
    """Copies the catalogue into a file; says which blobs it names, and what else it holds."""
    engine = await open_sqlite(path)
    try:
        async with engine.begin() as target:

            async def copy(connection: AsyncConnection) -> None:
                await copy_rows(connection, target)

            await database.snapshot(copy)
            wanted = await _wanted(target)
        async with engine.connect() as connection:
            # One file, which can be read where nothing can be written.
            await connection.exec_driver_sql("PRAGMA journal_mode=DELETE")
    finally:
        await engine.dispose()
    await asyncio.to_thread(_sync, path)
    return wanted


async def _wanted(connection: AsyncConnection) -> _Wanted:
    present = select(blobs.c.digest, blobs.c.size_bytes).where(blobs.c.state == PRESENT)
    counts = [
        int(await connection.scalar(select(func.count()).select_from(table)) or 0)
        for table in (adapters, bases, versions)
    ]
    return _Wanted(
        {row.digest: row.size_bytes for row in await connection.execute(present)},
        frozenset(await connection.scalars(select(version_files.c.digest).distinct())),
        int(await connection.scalar(select(revisions.c.value)) or 0),
        *counts,
    )


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


async def _copy_all(
    source: BlobStore, target: BlobStore, sizes: Mapping[str, int]
) -> tuple[int, set[str]]:
    """How many were copied, and which could not be."""
    copied, lost = 0, set[str]()

    async def one(digest: str, size_bytes: int) -> None:
        nonlocal copied
        try:
            # Apart: the sum must be read after the wait, not before it.
            new = await copy_blob(source, target, digest, size_bytes)
            copied += new
        except GraftError as error:
            if error.reason not in _LOST:
                raise
            lost.add(digest)

    await each("Copying blobs:", sizes, one)
    return copied, lost


async def copy_blob(source: BlobStore, target: BlobStore, digest: str, size_bytes: int) -> bool:
    """Copies a blob, checked against its digest; False when the target has it.

    Raises:
        GraftError: BLOB_NOT_FOUND, DIGEST_MISMATCH; STORAGE_FULL.
    """
    upload = await target.begin_upload(digest, size_bytes)
    if upload is None:
        return False
    try:
        offset = 0
        async for chunk in source.read(digest):
            await upload.append(offset, chunk)
            offset += len(chunk)
        await upload.finish()
    finally:
        await upload.close()
    return True


async def _finish(
    folder: BackupFolder,
    name: str,
    wanted: _Wanted,
    copied: int,
    lost: Sequence[str],
    with_bytes: bool,
) -> Saved:
    info = BackupInfo(
        format=FORMAT,
        graft=VERSION,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        catalogue=name,
        digest=await asyncio.to_thread(digest_file, folder.path(name)),
        revision=wanted.revision,
        adapters=wanted.adapters,
        bases=wanted.bases,
        versions=wanted.versions,
        blobs=len(wanted.sizes),
        blob_bytes=sum(wanted.sizes.values()),
        with_bytes=with_bytes,
    )
    await asyncio.to_thread(folder.write, info)
    return Saved(info, copied, lost)
