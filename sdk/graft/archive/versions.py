"""Makes an archive's versions through the registry's own commit, with the numbers that they had.

Where numbers are missing, since what had them was purged, a placeholder is committed, deleted and
purged: "bot:7" means the same afterwards, and 6 is a tombstone as before.
"""

from __future__ import annotations

from collections.abc import Callable

from graft.archive.blobs import BlobSource
from graft.archive.renaming import Renaming
from graft.archive.tar import refused
from graft.catalogue import pages
from graft.connection import Connection
from graft.digests import digest_message
from graft.errors import GraftError, Reason
from graft.registry.v1 import registry_service_pb2 as pb

_PEER = "the registry"
_COMMIT_TIMEOUT_S = 3600.0
_PLACEHOLDER = "graft-archive:no-such-version:"


class VersionMaker:
    """Makes versions, each once.

    Attributes:
        numbers: the number that each version of the archive has here, by its name there.
    """

    def __init__(
        self,
        connection: Connection,
        renaming: Renaming,
        blobs: BlobSource,
        say: Callable[[str], None],
    ) -> None:
        self._connection, self._stub = connection, connection.registry
        self._renaming, self._blobs, self._say = renaming, blobs, say
        self._latest_there: dict[str, int] = {}
        self._here: dict[str, dict[str, pb.Version]] = {}
        self._next: dict[str, int] = {}
        self._last: dict[str, pb.Version] = {}
        self._shifted: set[str] = set()
        self.numbers: dict[str, int] = {}

    def expect(self, parent: str, latest: int) -> None:
        """Says what number the newest version of a parent had, be it purged."""
        self._latest_there[parent] = latest

    async def make(self, version: pb.Version) -> bool:
        """Whether it was made; else it was there.

        Raises:
            GraftError: ARCHIVE_REFUSED when its manifest has another digest than it says.
        """
        if digest_message(version.manifest) != version.digest:
            raise refused(f"the manifest of {version.name} has another digest than it says")
        parent = self._parent(version)
        here = await self._versions_here(parent)
        wanted = self._renaming.manifest(version.manifest, version.digest)
        found = here.get(digest_message(wanted)) or here.get(_loose(wanted))
        made = found is None
        if found is None:
            digests = [file.digest for file in version.manifest.files]
            async with self._connection.lease(digests, "upload"):
                await self._blobs.bring(version.manifest.files)
                await self._fill_gap(version, parent)
                found = await self._commit(version, wanted, parent)
            here[found.digest] = found
        self._last[parent] = version
        if found.HasField("delete_time"):
            self._say(f"{version.name} is deleted here, and stays so.")
            return made
        self._remember(version, found, parent)
        await self._sign(version, found)
        return made

    async def fill_ends(self) -> None:
        """Numbers after the last version were used too, where they were purged: they stay used."""
        for parent, version in self._last.items():
            latest = self._latest_there.get(version.name.rsplit("/", 2)[0], 0)
            if parent not in self._shifted:
                await self._fill(version, parent, latest + 1)

    def _parent(self, version: pb.Version) -> str:
        return self._renaming.name(version.name.rsplit("/", 2)[0])

    async def _versions_here(self, parent: str) -> dict[str, pb.Version]:
        """Versions of a parent by what identifies their content."""
        if parent in self._here:
            return self._here[parent]

        async def page(token: str) -> pb.ListVersionsResponse:
            request = pb.ListVersionsRequest(
                parent=parent, page_size=1000, page_token=token, show_deleted=True
            )
            return await self._connection.call(self._stub.ListVersions, request, _PEER)

        found: dict[str, pb.Version] = {}
        async for answer in pages(page):
            for one in answer.versions:
                if _is_placeholder(one):
                    # An import ended between making it and ending it.
                    await self._retire(one)
                found[_loose(one.manifest, always=True)] = found[one.digest] = one
        self._here[parent] = found
        self._next[parent] = 1 + await self._latest(parent)
        return found

    async def _latest(self, parent: str) -> int:
        if "/bases/" in parent:
            request = pb.GetBaseRequest(name=parent)
            return (await self._connection.call(self._stub.GetBase, request, _PEER)).latest_version
        ask = pb.GetAdapterRequest(name=parent)
        return (await self._connection.call(self._stub.GetAdapter, ask, _PEER)).latest_version

    async def _commit(self, version: pb.Version, wanted: pb.Manifest, parent: str) -> pb.Version:
        request = self._request(version, wanted, parent)
        request.description = version.description
        request.labels.update(version.labels)
        found = await self._call_commit(request)
        loose = _loose(wanted)
        if digest_message(wanted) != found.digest and loose != _loose(found.manifest, always=True):
            raise GraftError(
                Reason.DIGEST_MISMATCH,
                f"{version.name} of the archive became {found.name}, which is something else: the "
                "registry found another content in the same files",
                next_step="Export it again with a graft of the registry's version.",
            )
        self._next[parent] = found.number + 1
        return found

    async def _fill_gap(self, version: pb.Version, parent: str) -> None:
        if parent not in self._shifted:
            await self._fill(version, parent, version.number)

    async def _fill(self, version: pb.Version, parent: str, until: int) -> None:
        """Uses up numbers below until, with the content of a version that is committed next or was last."""
        while self._next[parent] < until:
            number = self._next[parent]
            request = self._request(version, version.manifest, parent)
            request.lineage.Clear()
            request.lineage.sources.append(f"{_PLACEHOLDER}{number}")
            request.description = "Stands for a version that was not in the archive."
            made = await self._call_commit(request)
            await self._retire(made)
            self._next[parent] = max(number, made.number) + 1

    async def _retire(self, placeholder: pb.Version) -> None:
        why = "Its number was used before the import"
        delete = pb.DeleteVersionRequest(name=placeholder.name, reason=why)
        await self._connection.call(self._stub.DeleteVersion, delete, _PEER)
        purge = pb.PurgeVersionRequest(name=placeholder.name, reason=why)
        await self._connection.call(self._stub.PurgeVersion, purge, _PEER)

    def _request(
        self, version: pb.Version, manifest: pb.Manifest, parent: str
    ) -> pb.CommitVersionRequest:
        request = pb.CommitVersionRequest(
            parent=parent,
            files=manifest.files,
            base_fingerprint=manifest.base_fingerprint,
            lineage=manifest.lineage,
            method=manifest.method,
        )
        if "/bases/" in parent:
            request.ClearField("base_fingerprint")
        return request

    async def _call_commit(self, request: pb.CommitVersionRequest) -> pb.Version:
        timeout_s = max(_COMMIT_TIMEOUT_S, self._connection.timeout_s)
        return await self._connection.call(
            self._stub.CommitVersion, request, _PEER, timeout_s=timeout_s
        )

    def _remember(self, version: pb.Version, found: pb.Version, parent: str) -> None:
        self.numbers[version.name] = found.number
        if found.number != version.number:
            self._shifted.add(parent)
            self._say(f"{version.name} is version {found.number} here.")

    async def _sign(self, version: pb.Version, found: pb.Version) -> None:
        kept = {one.envelope_json for one in found.signatures}
        missing = [one.envelope_json for one in version.signatures if one.envelope_json not in kept]
        if missing and found.digest != version.digest:
            self._say(
                f"{version.name} has another digest here: its {len(missing)} signatures are left out."
            )
            return
        for envelope in missing:
            request = pb.SignVersionRequest(name=found.name, envelope_json=envelope)
            await self._connection.call(self._stub.SignVersion, request, _PEER)


def _is_placeholder(version: pb.Version) -> bool:
    sources = version.manifest.lineage.sources
    return (
        bool(sources)
        and sources[0].startswith(_PLACEHOLDER)
        and not version.HasField("delete_time")
    )


def _loose(manifest: pb.Manifest, always: bool = False) -> str:
    """Identifies the content of a manifest from before kinds and methods were kept; of others nothing."""
    if manifest.kind and not always:
        return "nothing"
    plain = pb.Manifest()
    plain.CopyFrom(manifest)
    for newer in ("kind", "method"):
        plain.ClearField(newer)
    return f"plain {digest_message(plain)}"
