"""What some commits need to know of the catalogue, read at once, and what they add to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from graft.names import namespace_of, version_name
from sqlalchemy import Select, bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.caller import Caller
from services.registry.catalogue import rows
from services.registry.catalogue.base import NewVersion, RequestKey
from services.registry.catalogue.blob_index import present_digests
from services.registry.catalogue.change import Change
from services.registry.catalogue.facts import add_facts, file_rows
from services.registry.catalogue.models import new_life
from services.registry.catalogue.requests import check_same, find_answers
from services.registry.catalogue.tables import (
    adapters,
    base_contents,
    bases,
    namespaces,
    request_keys,
    version_files,
    versions,
)
from services.registry.catalogue.usage import more_used
from services.registry.domain import (
    BaseContent,
    Fingerprint,
    Life,
    Manifest,
    Module,
    Resource,
    Version,
)
from services.registry.errors import deleted, not_found, refused

Wanted = Sequence[tuple[NewVersion, RequestKey | None]]
_SET_LATEST = {
    table.name: update(table)
    .where(table.c.name == bindparam("its_name"))
    .values(latest_version=bindparam("its_latest"))
    for table in (adapters, bases)
}


@dataclass(slots=True)
class _Parent:
    latest_version: int
    reserved_version: int
    life: Life
    grew: bool = False


@dataclass(slots=True)
class CommitGroup:
    """The state that a group of commits is decided by, as it is after each of them."""

    change: Change
    answered: dict[tuple[str, str], tuple[str, Resource]]
    parents: dict[str, _Parent]
    known: dict[tuple[str, str], Version]
    present: set[str]
    used: dict[str, dict[str, Any]]
    new_keys: list[dict[str, Any]] = field(default_factory=list)
    new_versions: list[Version] = field(default_factory=list)
    contents: list[BaseContent] = field(default_factory=list)
    first_in: set[str] = field(default_factory=set)

    @classmethod
    async def read(cls, change: Change, wanted: Wanted) -> CommitGroup:
        """Reads what all of these commits need, in a few statements."""
        connection = change.connection
        names = {new.parent for new, _ in wanted}
        keys = {(namespace_of(new.parent), key.request_id) for new, key in wanted if key}
        spaces = {namespace_of(name) for name in names}
        files = {file.digest for new, _ in wanted for file in new.manifest.files}
        return cls(
            change=change,
            answered=await find_answers(connection, keys),
            parents=await _parents(connection, names),
            known=await _known(connection, wanted),
            present=await present_digests(connection, files),
            used={
                row.namespace: row._asdict()
                for row in await _all(
                    connection, select(namespaces).where(namespaces.c.namespace.in_(spaces))
                )
            },
        )

    def commit(self, new: NewVersion, key: RequestKey | None, caller: Caller) -> Version:
        """Decides one commit, and notes what it adds. See Catalogue.commit_version."""
        namespace = namespace_of(new.parent)
        if key is not None and (namespace, key.request_id) in self.answered:
            request_hash, version = self.answered[namespace, key.request_id]
            check_same(key, request_hash)
            assert isinstance(version, Version), "the hash holds the kind of request"
            return version
        kind = "base" if "/bases/" in new.parent else "adapter"
        parent = self.parents.get(new.parent)
        if parent is None:
            raise not_found(kind, new.parent)
        if parent.life.deleted:
            raise deleted(kind, new.parent, parent.life)
        known = self.known.get((new.parent, new.digest))
        version = known or self._add(namespace, new, parent, caller)
        if version.life.deleted:
            raise deleted("version", version_name(version.parent, version.number), version.life)
        if key is not None:
            self._keep_answer(namespace, key, version)
        return version

    def _add(self, namespace: str, new: NewVersion, parent: _Parent, caller: Caller) -> Version:
        self._check_present(new.manifest)
        self._use(namespace, new.manifest)
        self.change.caller = caller
        parent.latest_version = max(parent.latest_version, parent.reserved_version) + 1
        parent.grew = True
        version = Version(
            parent=new.parent,
            number=parent.latest_version,
            digest=new.digest,
            manifest=new.manifest,
            report=new.report,
            create_time=self.change.now,
            description=new.description,
            labels=new.labels,
            life=new_life(self.change, version_name(new.parent, parent.latest_version)),
        )
        self.known[new.parent, new.digest] = version
        self.new_versions.append(version)
        if new.content is not None:
            self.contents.append(new.content)
        add_facts(self.change, namespace, version)
        self.change.record(namespace, version, detail={"digest": version.digest})
        return version

    def _check_present(self, manifest: Manifest) -> None:
        """Collection takes turns with commits: what is there now stays, once this is stored."""
        for file in manifest.files:
            if file.digest not in self.present:
                raise refused(
                    "files",
                    f"{file.path} ({file.digest}) was not uploaded, or is not kept any more",
                    "Upload it with BlobService.Write, then commit again.",
                    digest=file.digest,
                )

    def _use(self, namespace: str, manifest: Manifest) -> None:
        if namespace not in self.used:
            self.first_in.add(namespace)
        used = self.used.get(namespace, {"namespace": namespace})
        more = more_used(namespace, used, size_bytes=manifest.size_bytes, versions=1)
        self.used[namespace] = {**used, **more}

    def _keep_answer(self, namespace: str, key: RequestKey, version: Version) -> None:
        self.answered[namespace, key.request_id] = (key.request_hash, version)
        self.new_keys.append(
            {
                "namespace": namespace,
                "request_id": key.request_id,
                "request_hash": key.request_hash,
                "kind": "version",
                "resource": rows.dump(version, Version),
                "time_us": rows.to_us(self.change.now),
            }
        )

    async def store(self) -> None:
        """Writes what the commits added and what others in the transaction may read."""
        run = self.change.connection.execute
        if self.new_versions:
            await run(
                insert(versions),
                [rows.version_row(one, namespace_of(one.parent)) for one in self.new_versions],
            )
            needed = [row for one in self.new_versions for row in file_rows(one)]
            if needed:
                await run(insert(version_files), needed)
            await self._store_parents()
            await self._store_used()
        if self.new_keys:
            await run(insert(request_keys), self.new_keys)
        for content in self.contents:
            await _keep_content(self.change.connection, content)

    async def _store_parents(self) -> None:
        for table in (adapters, bases):
            grown = [
                {"its_name": name, "its_latest": parent.latest_version}
                for name, parent in self.parents.items()
                if parent.grew and f"/{table.name}/" in name
            ]
            if grown:
                await self.change.connection.execute(_SET_LATEST[table.name], grown)

    async def _store_used(self) -> None:
        for namespace in {namespace_of(one.parent) for one in self.new_versions}:
            values = {
                column: value
                for column, value in self.used[namespace].items()
                if column.startswith("used_")
            }
            if namespace in self.first_in:
                new = {"used_adapters": 0, **values, "namespace": namespace}
                await self.change.connection.execute(insert(namespaces).values(new))
            else:
                await self.change.connection.execute(
                    update(namespaces).where(namespaces.c.namespace == namespace).values(values)
                )


async def _all(connection: AsyncConnection, query: Select[Any]) -> Sequence[rows.AnyRow]:
    found: Sequence[rows.AnyRow] = (await connection.execute(query)).all()
    return found


async def _parents(connection: AsyncConnection, names: Iterable[str]) -> dict[str, _Parent]:
    found: dict[str, _Parent] = {}
    for table in (adapters, bases):
        those = [name for name in names if f"/{table.name}/" in name]
        if those:
            c = table.c
            query = select(
                c.name, c.latest_version, c.reserved_version, c.delete_time_us, c.purge_time_us
            ).where(c.name.in_(those))
            for row in await _all(connection, query):
                life = rows.ended(row.delete_time_us, row.purge_time_us)
                found[row.name] = _Parent(row.latest_version, row.reserved_version, life)
    return found


async def _known(connection: AsyncConnection, wanted: Wanted) -> dict[tuple[str, str], Version]:
    query = select(versions).where(
        versions.c.parent.in_({new.parent for new, _ in wanted}),
        versions.c.digest.in_({new.digest for new, _ in wanted}),
    )
    return {(row.parent, row.digest): rows.version_of(row) for row in await _all(connection, query)}


async def _keep_content(connection: AsyncConnection, content: BaseContent) -> None:
    digest = content.fingerprint.digest
    known = select(base_contents.c.fingerprint_digest).where(
        base_contents.c.fingerprint_digest == digest
    )
    if await connection.scalar(known) is None:
        await connection.execute(
            insert(base_contents).values(
                fingerprint_digest=digest,
                fingerprint=rows.dump(content.fingerprint, Fingerprint),
                config_json=content.config_json,
                modules=rows.dump(list(content.modules), list[Module]),
            )
        )
