"""Versions in SQL."""

from __future__ import annotations

from graft.names import namespace_of, version_name
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.catalogue import rows
from services.registry.catalogue.base import NewVersion, RequestKey
from services.registry.catalogue.blob_index import present_digests
from services.registry.catalogue.change import Change
from services.registry.catalogue.facts import add_facts, add_files
from services.registry.catalogue.models import new_life, read_parent
from services.registry.catalogue.requests import find_answer, keep_answer
from services.registry.catalogue.tables import adapters, aliases, base_contents, bases, versions
from services.registry.catalogue.usage import use
from services.registry.domain import (
    Adapter,
    Base,
    BaseContent,
    Fingerprint,
    Manifest,
    Module,
    Version,
)
from services.registry.errors import deleted, not_found, refused


async def find_committed(
    connection: AsyncConnection, parent: str, key: RequestKey | None
) -> Version | None:
    """See Catalogue.find_committed."""
    answered = await find_answer(connection, namespace_of(parent), key)
    assert answered is None or isinstance(answered, Version), "the hash holds the kind of request"
    return answered


async def read_version(connection: AsyncConnection, parent: str, number: int) -> Version:
    """Raises VERSION_NOT_FOUND."""
    row = (
        await connection.execute(
            select(versions).where(versions.c.parent == parent, versions.c.number == number)
        )
    ).one_or_none()
    if row is None:
        raise not_found("version", version_name(parent, number))
    return rows.version_of(row)


async def read_version_by_alias(connection: AsyncConnection, alias: str) -> Version:
    """Raises ALIAS_NOT_FOUND; DELETED when the alias' adapter or base is."""
    names = (aliases.c.parent == versions.c.parent) & (aliases.c.version == versions.c.number)
    owner = bases if "/bases/" in alias else adapters
    row = (
        await connection.execute(
            select(
                versions,
                owner.c.delete_time_us.label("owner_delete_time_us"),
                owner.c.purge_time_us.label("owner_purge_time_us"),
            )
            .join(aliases, names)
            .join(owner, owner.c.name == aliases.c.parent)
            .where(aliases.c.name == alias)
        )
    ).one_or_none()
    if row is None:
        raise not_found("alias", alias)
    if row.owner_delete_time_us is not None:
        life = rows.ended(row.owner_delete_time_us, row.owner_purge_time_us)
        raise deleted("base" if owner is bases else "adapter", row.parent, life)
    return rows.version_of(row)


async def commit_version(change: Change, new: NewVersion, key: RequestKey | None) -> Version:
    """See Catalogue.commit_version."""
    connection, namespace = change.connection, namespace_of(new.parent)
    answered = await find_committed(connection, new.parent, key)
    if answered is not None:
        return answered
    row = (
        await connection.execute(
            select(versions).where(versions.c.parent == new.parent, versions.c.digest == new.digest)
        )
    ).one_or_none()
    parent = await read_parent(connection, new.parent)
    if parent.life.deleted:
        raise deleted("adapter" if isinstance(parent, Adapter) else "base", new.parent, parent.life)
    version = (
        rows.version_of(row) if row is not None else await _add(change, namespace, new, parent)
    )
    if version.life.deleted:
        raise deleted("version", version_name(version.parent, version.number), version.life)
    await keep_answer(change, namespace, key, version)
    return version


async def _add(change: Change, namespace: str, new: NewVersion, parent: Adapter | Base) -> Version:
    await _check_present(change.connection, new.manifest)
    await use(change, namespace, size_bytes=new.manifest.size_bytes, versions=1)
    number = parent.latest_version + 1
    version = Version(
        parent=new.parent,
        number=number,
        digest=new.digest,
        manifest=new.manifest,
        report=new.report,
        create_time=change.now,
        description=new.description,
        labels=new.labels,
        life=new_life(change, version_name(new.parent, number)),
    )
    await change.connection.execute(insert(versions).values(rows.version_row(version, namespace)))
    table = adapters if isinstance(parent, Adapter) else bases
    await change.connection.execute(
        update(table).where(table.c.name == new.parent).values(latest_version=number)
    )
    if new.content is not None:
        await _keep_content(change, new.content)
    await add_files(change, version)
    add_facts(change, namespace, version)
    change.record(namespace, version, detail={"digest": version.digest})
    return version


async def _check_present(connection: AsyncConnection, manifest: Manifest) -> None:
    """Collection takes turns with commits: what is there now stays, once this is stored."""
    present = await present_digests(connection, [file.digest for file in manifest.files])
    for file in manifest.files:
        if file.digest not in present:
            raise refused(
                "files",
                f"{file.path} ({file.digest}) was not uploaded, or is not kept any more",
                "Upload it with BlobService.Write, then commit again.",
                digest=file.digest,
            )


async def _keep_content(change: Change, content: BaseContent) -> None:
    digest = content.fingerprint.digest
    known = select(base_contents.c.fingerprint_digest).where(
        base_contents.c.fingerprint_digest == digest
    )
    if await change.connection.scalar(known) is None:
        await change.connection.execute(
            insert(base_contents).values(
                fingerprint_digest=digest,
                fingerprint=rows.dump(content.fingerprint, Fingerprint),
                config_json=content.config_json,
                modules=rows.dump(list(content.modules), list[Module]),
            )
        )
