"""Checks a registry: every version's bytes are there with their digests, aliases name versions, and
the audit log is whole. Reads only, and beside a registry that serves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from graft.digests import audit_digest
from graft.errors import GraftError, Reason
from graft.names import version_name
from sqlalchemy import and_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.backup.opening import Opened
from services.registry.backup.progress import each
from services.registry.blobs.base import BlobStore
from services.registry.catalogue import rows
from services.registry.catalogue.blob_index import PRESENT
from services.registry.catalogue.tables import (
    aliases,
    audit_entries,
    blobs,
    revisions,
    version_files,
    versions,
)
from services.registry.convert.messages import manifest_digest

_PAGE = 200


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not as it should be; resource is what suffers from it."""

    resource: str
    what: str
    next_step: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What was looked at, and what is wrong."""

    versions: int
    blobs: int
    blob_bytes: int
    audit_entries: int
    damages: Sequence[Damage]


async def check(registry: Opened, deep: bool = True) -> Checked:
    """Looks at everything.

    Args:
        registry: opened beside whoever serves it.
        deep: read all bytes and take their digests; otherwise only that they are there, by size.

    Raises:
        GraftError: UNAVAILABLE.
    """
    users, sizes = await registry.database.snapshot(_files)
    wrong = await _bytes(registry.blobs, sizes, deep)
    # What was purged and collected meanwhile is missing rightly.
    still, _ = await registry.database.snapshot(_files) if wrong else (users, sizes)
    damages = [
        Damage(version, f"{digest}: {wrong[digest]}", _UPLOAD_AGAIN)
        for digest in sorted(wrong)
        for version in still.get(digest, ())
    ]
    count, manifests = 0, list[Damage]()
    async for version, damage in _manifests(registry):
        count += version
        manifests += damage
    damages += manifests + await registry.database.snapshot(_aliases)
    entries, chain = await registry.database.snapshot(_audit)
    return Checked(count, len(sizes), sum(sizes.values()), entries, [*damages, *chain])


_UPLOAD_AGAIN = (
    "Bring the bytes back from a backup (`python -m services.registry.backup mend FOLDER`), or delete "
    "the version and train or push it again."
)


async def _files(connection: AsyncConnection) -> tuple[Mapping[str, list[str]], Mapping[str, int]]:
    """Which versions have a digest, and how large it is; -1 where the catalogue does not know it."""
    query = select(version_files, blobs.c.size_bytes).outerjoin(
        blobs, and_(blobs.c.digest == version_files.c.digest, blobs.c.state == PRESENT)
    )
    users: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for row in await connection.execute(query):
        users.setdefault(row.digest, []).append(version_name(row.parent, row.number))
        sizes[row.digest] = -1 if row.size_bytes is None else row.size_bytes
    return users, sizes


async def _bytes(store: BlobStore, sizes: Mapping[str, int], deep: bool) -> Mapping[str, str]:
    """What is wrong with which digests."""
    wrong: dict[str, str] = {}

    async def one(digest: str, size_bytes: int) -> None:
        found = await _look(store, digest, size_bytes, deep)
        if found:
            wrong[digest] = found

    await each("Checking blobs:", sizes, one)
    return wrong


async def _look(store: BlobStore, digest: str, size_bytes: int, deep: bool) -> str:
    if size_bytes < 0:
        return "the catalogue does not know these bytes"
    try:
        found_bytes = await store.size(digest)
        if found_bytes != size_bytes:
            return f"{found_bytes} bytes are stored instead of {size_bytes}"
        if deep:
            # A store checks the digest of what it reads from the beginning to the end.
            async for _ in store.read(digest):
                pass
    except GraftError as error:
        if error.reason is Reason.BLOB_NOT_FOUND:
            return "its bytes are not stored"
        if error.reason is Reason.DIGEST_MISMATCH:
            return "other bytes are stored under this digest"
        raise
    return ""


async def _manifests(registry: Opened) -> AsyncIterator[tuple[int, list[Damage]]]:
    """Page by page: how many versions, and those whose manifest is not the one of their digest."""
    last = ("", 0)
    while True:
        read = _page_after(*last)
        page = await registry.database.read(read)
        if not page:
            return
        last = page[-1].parent, page[-1].number
        yield len(page), [one for row in page if (one := _manifest_damage(row)) is not None]


def _page_after(
    parent: str, number: int
) -> Callable[[AsyncConnection], Awaitable[Sequence[rows.AnyRow]]]:
    async def read(connection: AsyncConnection) -> Sequence[rows.AnyRow]:
        later = (versions.c.parent > parent) | (
            (versions.c.parent == parent) & (versions.c.number > number)
        )
        query = select(versions).where(later).order_by(versions.c.parent, versions.c.number)
        found: Sequence[rows.AnyRow] = (await connection.execute(query.limit(_PAGE))).all()
        return found

    return read


def _manifest_damage(row: rows.AnyRow) -> Damage | None:
    version = rows.version_of(row)
    if manifest_digest(version.manifest) == version.digest:
        return None
    name = version_name(version.parent, version.number)
    return Damage(
        name, "its manifest is not the one of its digest", "Restore the catalogue from a backup."
    )


async def _aliases(connection: AsyncConnection) -> list[Damage]:
    query = (
        select(aliases.c.name, aliases.c.version, versions.c.purge_time_us, versions.c.digest)
        .outerjoin(
            versions,
            and_(versions.c.parent == aliases.c.parent, versions.c.number == aliases.c.version),
        )
        .where(versions.c.digest.is_(None) | versions.c.purge_time_us.is_not(None))
    )
    return [
        Damage(
            row.name,
            f"it names version {row.version}, which is purged or not there",
            "Set it to a version that is there: graft adapters promote.",
        )
        for row in await connection.execute(query)
    ]


async def _audit(connection: AsyncConnection) -> tuple[int, list[Damage]]:
    """How many entries there are, and the first place at which their chain is broken."""
    counters = (await connection.execute(select(revisions))).one()
    digest, number = "", 0
    result = await connection.stream(select(audit_entries).order_by(audit_entries.c.number))
    async for row in result.mappings():
        entry = {name: value for name, value in row.items() if name != "digest"}
        number, digest = number + 1, audit_digest(digest, **entry)
        if entry["number"] != number or digest != row["digest"]:
            await result.close()
            return number, [_broken_chain(number)]
    if (number, digest) != (counters.audit, counters.audit_digest):
        return number, [_broken_chain(number + 1)]
    return number, []


def _broken_chain(number: int) -> Damage:
    return Damage(
        f"audit entry {number}",
        "the audit log is not as it was written from here on",
        "Compare with an exported log (`graft audit verify FILE`), and restore from a backup.",
    )
