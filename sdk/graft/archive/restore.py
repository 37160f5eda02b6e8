"""Takes an archive into a namespace: everything verified before it counts, nothing made twice.

Made again as it was: bases, adapters, versions with their numbers, signatures, aliases with their
moves, policies. Not made again, because only who did it can: approvals, and who moved an alias when
(the reason of each move says it).
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from graft.adapters import Note
from graft.archive.blobs import BlobSource
from graft.archive.records import Index, copy_records, read_index, read_records
from graft.archive.renaming import Renaming
from graft.archive.replay import Replay
from graft.archive.tar import ArchiveReader, refused
from graft.archive.versions import VersionMaker
from graft.client import Client
from graft.connection import Connection
from graft.errors import GraftError, NotFoundError, Reason
from graft.names import namespace_name
from graft.registry.v1 import registry_service_pb2 as pb

_PEER = "the registry"


@dataclass(slots=True)
class Restored:
    """What an import made; what was there already is not counted."""

    namespace: str
    digest: str
    bases: int = 0
    adapters: int = 0
    versions: int = 0
    aliases: int = 0
    blobs: int = 0
    existing_versions: int = 0
    notes: list[str] = field(default_factory=list)


async def import_namespace(
    client: Client,
    path: str | Path,
    *,
    namespace: str | None = None,
    digest: str | None = None,
    note: Note | None = None,
) -> Restored:
    """Makes what an archive holds. Again, or after it was cut off, it goes on where it stopped.

    Args:
        client: speaks to the registry, which verifies every version as if it were pushed.
        path: what export_namespace() wrote.
        namespace: another namespace than it was exported from. Names in manifests change with it,
            so digests do too, and signatures are left out.
        digest: what the export said; an archive with another one is refused.
        note: called with a sentence about everything that is not as it was.

    Raises:
        GraftError: ARCHIVE_REFUSED, DIGEST_MISMATCH, ALREADY_EXISTS (a base or adapter of that name
            that is another), VERSION_REFUSED, QUOTA_EXCEEDED, UNAVAILABLE.
    """
    with _opened(Path(path)) as file, tempfile.TemporaryDirectory(prefix="graft-import-") as made:
        reader = ArchiveReader(file)
        index, found = await asyncio.to_thread(read_index, reader)
        if digest and digest != found:
            raise refused(f"its digest is {found}, not {digest}", "Get the archive that was meant.")
        with (Path(made) / "records").open("w+b") as spool:
            member = await asyncio.to_thread(copy_records, reader, index, spool)
            await asyncio.to_thread(_check, index, spool)
            blobs = BlobSource(reader, member, client.connection, Path(made))
            target = namespace or index.namespace
            work = _Import(client.connection, index, target, blobs, Restored(target, found), note)
            return await work.run(spool)


class _Import:
    """One import, record by record."""

    def __init__(
        self,
        connection: Connection,
        index: Index,
        namespace: str,
        blobs: BlobSource,
        restored: Restored,
        note: Note | None,
    ) -> None:
        self._connection, self._blobs = connection, blobs
        self._renaming = Renaming(index.namespace, namespace)
        self._restored, self._note = restored, note
        self._versions = VersionMaker(connection, self._renaming, blobs, self._say)
        self._replay = Replay(connection, self._renaming, self._versions.numbers, self._say)

    async def run(self, spool: BinaryIO) -> Restored:
        needed: dict[str, int] = {}
        for resource in read_records(spool):
            if isinstance(resource, pb.Version):
                needed.update({file.digest: file.size_bytes for file in resource.manifest.files})
        self._blobs.expect(needed)
        for resource in read_records(spool):
            match resource:
                case pb.Base():
                    await self._base(resource)
                case pb.Adapter():
                    await self._adapter(resource)
                case pb.Version():
                    if await self._versions.make(resource):
                        self._restored.versions += 1
                    else:
                        self._restored.existing_versions += 1
                case pb.Alias():
                    self._replay.add(resource)
                case pb.AliasPolicy():
                    self._replay.add_policy(resource)
        await self._blobs.finish()
        await self._versions.fill_ends()
        self._restored.aliases = await self._replay.run()
        self._restored.blobs = self._blobs.uploaded
        return self._restored

    async def _base(self, base: pb.Base) -> None:
        self._versions.expect(base.name, base.latest_version)
        wanted = pb.Base(
            name=self._renaming.name(base.name),
            source=base.source,
            fingerprint=base.fingerprint,
            config_json=base.config_json,
            modules=base.modules,
            description=base.description,
            labels=base.labels,
        )
        stub = self._connection.registry
        try:
            request = pb.GetBaseRequest(name=wanted.name)
            found = await self._connection.call(stub.GetBase, request, _PEER)
        except NotFoundError:
            create = pb.CreateBaseRequest(base=wanted)
            await self._connection.call(stub.CreateBase, create, _PEER)
            self._restored.bases += 1
            return
        if found.fingerprint.digest != base.fingerprint.digest:
            raise _another("base", wanted.name, found.fingerprint.digest, base.fingerprint.digest)

    async def _adapter(self, adapter: pb.Adapter) -> None:
        self._versions.expect(adapter.name, adapter.latest_version)
        name, base = self._renaming.name(adapter.name), self._renaming.name(adapter.base)
        stub = self._connection.registry
        try:
            request = pb.GetAdapterRequest(name=name)
            found = await self._connection.call(stub.GetAdapter, request, _PEER)
        except NotFoundError:
            wanted = pb.Adapter(
                name=name, base=base, description=adapter.description, labels=adapter.labels
            )
            create = pb.CreateAdapterRequest(adapter=wanted)
            await self._connection.call(stub.CreateAdapter, create, _PEER)
            self._restored.adapters += 1
            return
        if found.base != base:
            raise _another("adapter", name, found.base, base)

    def _say(self, sentence: str) -> None:
        self._restored.notes.append(sentence)
        if self._note:
            self._note(sentence)


def _check(index: Index, spool: BinaryIO) -> None:
    """Every record is of the archive's namespace, there once, and below something that comes before it."""
    prefix = f"{namespace_name(index.namespace)}/"
    seen: set[str] = set()
    for resource in read_records(spool):
        name = resource.name
        if not name.startswith(prefix) or len(name) > 500:
            raise refused(f"a record's name is {name[:120]!r}, not of {index.namespace!r}")
        if isinstance(resource, pb.Version | pb.Alias | pb.AliasPolicy):
            parent = name.rsplit("/", 2)[0]
            if parent not in seen:
                raise refused(f"{name} comes before {parent}, or without it")
        if isinstance(resource, pb.Adapter) and resource.base not in seen:
            raise refused(f"{name} comes before {resource.base}, or without it")
        if isinstance(resource, pb.Base | pb.Adapter | pb.Version):
            if name in seen:
                raise refused(f"{name} is there twice")
            seen.add(name)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"{path} cannot be read ({error.strerror})",
            next_step="Name a file that `graft export` wrote.",
            path=path,
        ) from None
    with file:
        if not file.seekable():
            raise refused("it is a pipe", "Name a file.")
        yield file


def _another(kind: str, name: str, found: str, wanted: str) -> GraftError:
    return GraftError(
        Reason.ALREADY_EXISTS,
        f"There is another {kind} {name}: it has {found}, the archive's has {wanted}",
        next_step="Import into another namespace: --namespace NEW.",
        resource=name,
    )
