"""Puts a backup into an empty registry, and makes a catalogue that went back in time fit to serve.

What was told between the backup and the loss must not be told again of something else. So revisions
jump ahead of all that were given (who watches is told to list again), each adapter skips some version
numbers, and leases end: their holders take new ones.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from graft.digests import digest_file
from graft.errors import GraftError, Reason
from sqlalchemy import delete, exists, func, not_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.caller import Caller
from services.registry.backup.folder import BackupFolder, BackupInfo
from services.registry.backup.opening import Opened
from services.registry.backup.progress import Progress
from services.registry.backup.rows import copy_rows, first_filled
from services.registry.backup.save import copy_blob
from services.registry.blobs.base import BlobStore
from services.registry.blobs.filesystem import FilesystemBlobStore
from services.registry.catalogue.blob_index import PRESENT
from services.registry.catalogue.change import Change
from services.registry.catalogue.database import Database
from services.registry.catalogue.sqlite import open_sqlite
from services.registry.catalogue.tables import (
    adapters,
    aliases,
    bases,
    blobs,
    events,
    leases,
    revisions,
    version_files,
    versions,
)
from services.registry.pulse import Pulse

# More than any registry changes between two backups; 2^63 leaves room for billions of restores.
SKIPPED_REVISIONS = 1_000_000_000
SKIPPED_NUMBERS = 100


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did.

    dropped: uploads that no version has and whose bytes are not there. missing: digests that versions
    need and that the backup lacks.
    """

    revision: int
    dropped: int
    adapters: int
    versions: int
    aliases: int
    copied: int = 0
    missing: Sequence[str] = ()


async def restore(target: Opened, folder: BackupFolder, nothing_lost: bool = False) -> Restored:
    """Fills an empty registry. Bytes come first; broken off before its end, it is run again.

    Args:
        target: the empty registry; nobody else uses it.
        folder: the backup.
        nothing_lost: the backup was taken after the last change, of a registry that was stopped: all
            goes on as it was, and no revision or number is skipped.

    Raises:
        GraftError: INVALID_REQUEST when the folder is no backup, or the registry is not empty;
            DIGEST_MISMATCH when the backup is damaged; BLOB_NOT_FOUND; UNAVAILABLE; STORAGE_FULL.
    """
    info = await asyncio.to_thread(folder.read)
    await _check_empty(target.database)
    async with _catalogue_of(folder, info) as source:
        copied, missing = 0, list[str]()
        if info.with_bytes:
            copied, missing = await _copy_bytes(source, folder, target.blobs)
        present = await _present(source, target.blobs)

        async def work(change: Change) -> Restored:
            await _check_empty_now(change.connection)
            await source.snapshot(lambda connection: copy_rows(connection, change.connection))
            skip = (0, 0) if nothing_lost else (SKIPPED_REVISIONS, SKIPPED_NUMBERS)
            return await _settle(change.connection, present, *skip)

        done = await target.database.change(work)
    done = replace(done, copied=copied, missing=missing)
    await _note(target.database, {"backup_time": info.time, "backup_revision": info.revision})
    return done


async def settle(target: Opened) -> Restored:
    """After a catalogue was brought back by its own means: pg_restore, a point in time, a volume.

    Raises:
        GraftError: UNAVAILABLE.
    """
    present = await _present(target.database, target.blobs)
    done = await target.database.change(
        lambda change: _settle(change.connection, present, SKIPPED_REVISIONS, SKIPPED_NUMBERS)
    )
    await _note(target.database, {})
    return done


async def _note(database: Database, detail: Mapping[str, object]) -> None:
    """An entry in the audit log; apart, since what it is chained to was restored."""

    async def work(change: Change) -> None:
        change.caller = Caller(method="restore", actor="registry backup", request_id="")
        change.audit("", "registry", {"action": "restored", **detail})

    await database.change(work)


async def _settle(
    connection: AsyncConnection, present: set[str], revisions_on: int, numbers_on: int
) -> Restored:
    revision = int(await connection.scalar(select(revisions.c.value)) or 0) + revisions_on
    await connection.execute(delete(leases))
    dropped = await _drop_uploads(connection, present)
    if revisions_on:
        await connection.execute(delete(events))
        # An alias says at which revision it was set: later than whatever anybody saw of it.
        await connection.execute(update(aliases).values(revision=revision))
        await connection.execute(update(revisions).values(value=revision, compacted=revision))
    if numbers_on:
        for table in (adapters, bases):
            highest = table.c.latest_version + numbers_on
            await connection.execute(update(table).values(reserved_version=highest))
    counts = [
        int(await connection.scalar(select(func.count()).select_from(table)) or 0)
        for table in (adapters, versions, aliases)
    ]
    return Restored(revision, dropped, counts[0], counts[1], counts[2])


async def _drop_uploads(connection: AsyncConnection, present: set[str]) -> int:
    """Forgets blobs without bytes that no version has, so that who wants them uploads them again."""
    unused = not_(exists().where(version_files.c.digest == blobs.c.digest))
    found = (await connection.scalars(select(blobs.c.digest).where(unused))).all()
    gone = [digest for digest in found if digest not in present]
    for begin in range(0, len(gone), 500):
        some = gone[begin : begin + 500]
        await connection.execute(delete(blobs).where(blobs.c.digest.in_(some)))
    return len(gone)


async def _present(database: Database, store: BlobStore) -> set[str]:
    """Blobs of the catalogue that nothing has and whose bytes are there all the same."""
    unused = not_(exists().where(version_files.c.digest == blobs.c.digest))

    async def read(connection: AsyncConnection) -> list[str]:
        return list((await connection.scalars(select(blobs.c.digest).where(unused))).all())

    found = await database.snapshot(read)
    missing = set[str]()
    for begin in range(0, len(found), 500):
        missing.update(await store.missing(found[begin : begin + 500]))
    return set(found) - missing


async def _copy_bytes(
    source: Database, folder: BackupFolder, target: BlobStore
) -> tuple[int, list[str]]:
    """How many were copied, and which a version needs and the backup lacks."""
    needed = exists().where(version_files.c.digest == blobs.c.digest)

    async def read(connection: AsyncConnection) -> list[tuple[str, int, bool]]:
        query = select(blobs.c.digest, blobs.c.size_bytes, needed.label("needed")).where(
            blobs.c.state == PRESENT
        )
        return [(one.digest, one.size_bytes, one.needed) for one in await connection.execute(query)]

    wanted = await source.snapshot(read)
    store, progress = FilesystemBlobStore(folder.blobs), Progress("Restoring blobs:", len(wanted))
    copied, missing = 0, list[str]()
    for digest, size_bytes, has_version in wanted:
        try:
            copied += await copy_blob(store, target, digest, size_bytes)
        except GraftError as error:
            # The registry had lost them already when the backup was taken.
            if error.reason is not Reason.BLOB_NOT_FOUND:
                raise
            missing += [digest] if has_version else []
        progress.step()
    return copied, missing


async def _check_empty(database: Database) -> None:
    await database.snapshot(_check_empty_now)


async def _check_empty_now(connection: AsyncConnection) -> None:
    filled = await first_filled(connection)
    if filled:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"This registry is not empty: there is something in its table {filled}",
            next_step="Restore into an empty database or data folder, and keep the old one until "
            "the restored registry was looked at.",
        )


@asynccontextmanager
async def _catalogue_of(folder: BackupFolder, info: BackupInfo) -> AsyncIterator[Database]:
    """A copy of the backup's catalogue, brought to this Graft's schema; the backup stays as it is."""
    path = folder.path(info.catalogue)
    if not path.is_file() or await asyncio.to_thread(digest_file, path) != info.digest:
        raise GraftError(
            Reason.DIGEST_MISMATCH,
            f"The catalogue {path} is not the one that was backed up",
            next_step="Take another copy of this backup, or an older backup.",
        )
    with tempfile.TemporaryDirectory(prefix="graft-restore-") as scratch:
        copy = Path(scratch) / "catalogue.db"
        await asyncio.to_thread(shutil.copyfile, path, copy)
        database = Database(await open_sqlite(copy), Pulse())
        try:
            yield database
        finally:
            await database.close()
