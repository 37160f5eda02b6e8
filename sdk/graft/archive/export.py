"""Writes a namespace into one file: what is not deleted, with every byte of its versions, verified."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import BinaryIO

from graft.archive.policies import read_policy
from graft.archive.records import Index, Resource, member_name, pack, write_index
from graft.archive.summary import Summary
from graft.archive.tar import ArchiveWriter
from graft.catalogue import pages
from graft.client import Client
from graft.common.v1.common_pb2 import File
from graft.connection import Connection
from graft.digests import digest_bytes, digest_message
from graft.errors import GraftError, Reason
from graft.files import fsync_folder
from graft.names import namespace_name
from graft.registry.v1 import registry_service_pb2 as pb

_PEER = "the registry"


async def export_namespace(client: Client, namespace: str, path: str | Path) -> Summary:
    """Writes an archive, which appears only when it is whole.

    Args:
        client: speaks to the registry.
        namespace: what to export.
        path: a new file.

    Raises:
        GraftError: ALREADY_EXISTS (the file), NAMESPACE_NOT_FOUND when it holds nothing,
            DIGEST_MISMATCH, UNAVAILABLE.
    """
    path = Path(path)
    if path.exists():
        raise GraftError(
            Reason.ALREADY_EXISTS,
            f"{path} exists already",
            next_step="Name a new file; nothing is overwritten.",
            path=path,
        )
    connection = client.connection
    resources = await _Catalogue(connection, namespace).read()
    if not resources:
        raise GraftError(
            Reason.NAMESPACE_NOT_FOUND,
            f"The namespace {namespace!r} holds nothing",
            next_step="Check its name.",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        part = Path(folder) / "archive"
        with part.open("wb") as file:
            summary = await _write(connection, namespace, resources, file, Path(folder))
            await asyncio.to_thread(_flush, file)
        # A link fails where a rename would overwrite what came there meanwhile.
        os.link(part, path)
        fsync_folder(path.parent)
    return summary


async def _write(
    connection: Connection,
    namespace: str,
    resources: Sequence[Resource],
    file: BinaryIO,
    folder: Path,
) -> Summary:
    writer = ArchiveWriter(file)
    members = {member_name(n): data for n, data in enumerate(pack(resources), 1)}
    counts = {
        "bases": _count(resources, pb.Base),
        "adapters": _count(resources, pb.Adapter),
        "versions": _count(resources, pb.Version),
        "aliases": len({one.name for one in resources if isinstance(one, pb.Alias)}),
    }
    index = Index(namespace, counts, {name: digest_bytes(data) for name, data in members.items()})
    digest = write_index(writer, index)
    for name, data in members.items():
        await asyncio.to_thread(writer.add, name, data)
    blobs = 0
    for blob in _blobs(resources):
        fetched = folder / "blob"
        await connection.blobs.fetch(blob, fetched)
        name = f"blobs/{blob.digest.removeprefix('sha256:')}"
        await asyncio.to_thread(writer.add_file, name, fetched, blob.size_bytes)
        fetched.unlink()
        blobs += 1
    writer.close()
    return Summary(namespace, digest, blobs=blobs, size_bytes=file.tell(), **counts)


def _blobs(resources: Sequence[Resource]) -> Sequence[File]:
    """Each once, in the order in which versions need them."""
    found: dict[str, File] = {}
    for resource in resources:
        if isinstance(resource, pb.Version):
            for file in resource.manifest.files:
                found.setdefault(file.digest, file)
    return list(found.values())


class _Catalogue:
    """Reads what a namespace holds."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection, self._stub = connection, connection.registry
        self._parent = namespace_name(namespace)

    async def read(self) -> Sequence[Resource]:
        """Everything, in the order of records.py. Aliases first: every version they name is there then."""
        aliases = [one async for one in self._aliases()]
        policies = [one async for one in self._policies(aliases)]
        bases = [one async for one in self._bases()]
        adapters = [one async for one in self._adapters()]
        latest = {one.name: one.latest_version for one in bases}
        latest.update({one.name: one.latest_version for one in adapters})
        parents = [name for name, number in latest.items() if number]
        versions = [version for name in parents async for version in self._versions(name)]
        versions.sort(key=lambda one: (one.create_time.ToNanoseconds(), one.name))
        return [*bases, *adapters, *versions, *aliases, *policies]

    async def _bases(self) -> AsyncIterator[pb.Base]:
        async def page(token: str) -> pb.ListBasesResponse:
            request = pb.ListBasesRequest(parent=self._parent, page_size=1000, page_token=token)
            return await self._connection.call(self._stub.ListBases, request, _PEER)

        async for answer in pages(page):
            for base in filter(_lives, answer.bases):
                # A list leaves modules and configuration out.
                request = pb.GetBaseRequest(name=base.name)
                yield await self._connection.call(self._stub.GetBase, request, _PEER)

    async def _adapters(self) -> AsyncIterator[pb.Adapter]:
        async def page(token: str) -> pb.ListAdaptersResponse:
            request = pb.ListAdaptersRequest(parent=self._parent, page_size=1000, page_token=token)
            return await self._connection.call(self._stub.ListAdapters, request, _PEER)

        async for answer in pages(page):
            for adapter in filter(_lives, answer.adapters):
                yield adapter

    async def _versions(self, parent: str) -> AsyncIterator[pb.Version]:
        async def page(token: str) -> pb.ListVersionsResponse:
            request = pb.ListVersionsRequest(parent=parent, page_size=1000, page_token=token)
            return await self._connection.call(self._stub.ListVersions, request, _PEER)

        async for answer in pages(page):
            for version in filter(_lives, answer.versions):
                _check_digest(version)
                yield version

    async def _aliases(self) -> AsyncIterator[pb.Alias]:
        request = pb.ListAliasesRequest(parent=f"{self._parent}/adapters/-")
        answer = await self._connection.call(self._stub.ListAliases, request, _PEER)
        for alias in answer.aliases:
            moves = [move async for move in self._history(alias.name)]
            # A move from after the list may name a version that is not exported.
            for move in reversed([one for one in moves if one.revision <= alias.revision]):
                yield move

    async def _history(self, name: str) -> AsyncIterator[pb.Alias]:
        async def page(token: str) -> pb.ListAliasHistoryResponse:
            request = pb.ListAliasHistoryRequest(name=name, page_size=1000, page_token=token)
            return await self._connection.call(self._stub.ListAliasHistory, request, _PEER)

        async for answer in pages(page):
            for move in answer.aliases:
                yield move

    async def _policies(self, aliases: Sequence[pb.Alias]) -> AsyncIterator[pb.AliasPolicy]:
        for name in sorted({alias.name for alias in aliases}):
            policy = await read_policy(self._connection, name)
            if policy.etag:
                yield policy


def _lives(resource: pb.Base | pb.Adapter | pb.Version) -> bool:
    """What is deleted is not exported, also by a registry that lists it unasked."""
    return not resource.HasField("delete_time") and not resource.HasField("purge_time")


def _check_digest(version: pb.Version) -> None:
    found = digest_message(version.manifest)
    if found != version.digest:
        raise GraftError(
            Reason.DIGEST_MISMATCH,
            f"The manifest of {version.name} has the digest {found}, and the registry says {version.digest}",
            next_step="Check with `graft version` that client and registry are of one version.",
        )


def _count(resources: Sequence[Resource], kind: type[Resource]) -> int:
    return sum(isinstance(one, kind) for one in resources)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
