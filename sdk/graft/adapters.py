"""Adapters in the registry: listed, pushed, pulled, and their aliases moved by compare-and-set."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Unpack

from graft import convert, folders
from graft.bases import read_base
from graft.catalogue import Bases, Find, asked, listed, pages, versions_of
from graft.conditions import parse_condition
from graft.connection import Connection
from graft.digests import digest_message
from graft.errors import GraftError, NotFoundError, Reason
from graft.intake import intake
from graft.keys import PrivateKey, PublicKey
from graft.names import (
    DEFAULT_ALIAS,
    ModelReference,
    adapter_name,
    alias_name,
    base_name,
    namespace_name,
    version_name,
)
from graft.registry.v1 import registry_service_pb2 as pb
from graft.results import Adapter, Alias, Version, short_id
from graft.signatures import SignaturePolicy, Verdict, check, sign
from graft.transfers import Transferred, fetch_files, upload_files

_PEER = "the registry"
Note = Callable[[str], None]
"""Called with a sentence for people."""


class Adapters:
    """The adapters of a namespace. A name is short ("bot") or a full resource name."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self._connection = connection
        self._namespace = namespace
        self._bases = Bases(connection, namespace)

    def _full(self, adapter: str) -> str:
        return adapter if "/" in adapter else adapter_name(self._namespace, adapter)

    def _full_or_all(self, adapter: str) -> str:
        if adapter == "-":
            return f"{namespace_name(self._namespace)}/adapters/-"
        return self._full(adapter)

    async def list(self, **find: Unpack[Find]) -> Sequence[Adapter]:
        """Adapters, by name where no order is asked for.

        Raises:
            GraftError: INVALID_FILTER, naming the position; INVALID_REQUEST (the order).
        """
        stub, parent = self._connection.registry, namespace_name(self._namespace)

        async def page(token: str) -> pb.ListAdaptersResponse:
            request = pb.ListAdaptersRequest(parent=parent, page_token=token, **asked(find))
            return await self._connection.call(stub.ListAdapters, request, _PEER)

        return await listed(page, lambda answer: map(convert.adapter, answer.adapters), find)

    async def get(self, adapter: str) -> Adapter:
        """One adapter.

        Raises:
            GraftError: ADAPTER_NOT_FOUND.
        """
        request = pb.GetAdapterRequest(name=self._full(adapter))
        stub = self._connection.registry
        return convert.adapter(await self._connection.call(stub.GetAdapter, request, _PEER))

    async def create(self, adapter: str, base: str, description: str = "") -> Adapter:
        """Creates an adapter for a recorded base.

        Raises:
            GraftError: ALREADY_EXISTS, BASE_NOT_FOUND.
        """
        full_base = base if base.startswith("namespaces/") else base_name(self._namespace, base)
        wanted = pb.Adapter(name=self._full(adapter), base=full_base, description=description)
        request = pb.CreateAdapterRequest(adapter=wanted, request_id=uuid.uuid4().hex)
        stub = self._connection.registry
        return convert.adapter(await self._connection.call(stub.CreateAdapter, request, _PEER))

    async def versions(self, adapter: str = "-", **find: Unpack[Find]) -> Sequence[Version]:
        """Versions of an adapter, or of all of them, newest first where no order is asked for.

        Raises:
            GraftError: ADAPTER_NOT_FOUND; INVALID_FILTER, naming the position; INVALID_REQUEST
                (the order).
        """
        return await versions_of(self._connection, self._full_or_all(adapter), find)

    async def version(self, reference: str) -> Version:
        """One version by "bot", "bot@production" or "bot:7"; "bot" means as in a request for text.

        Raises:
            GraftError: VERSION_NOT_FOUND, ALIAS_NOT_FOUND, ADAPTER_NOT_FOUND, INVALID_REFERENCE.
        """
        return convert.version(await self._version(reference))

    async def _version(self, text: str) -> pb.Version:
        reference = ModelReference.parse(text, self._namespace)
        adapter = adapter_name(reference.namespace, reference.name)
        if reference.version:
            return await self._get_version(version_name(adapter, reference.version))
        alias = alias_name(adapter, reference.alias or DEFAULT_ALIAS)
        try:
            return await self._get_version(alias)
        except NotFoundError:
            if reference.alias:
                raise
        newest = (await self.get(adapter)).latest_version
        if not newest:
            raise GraftError(
                Reason.VERSION_NOT_FOUND,
                f"{reference.name} has no version yet",
                next_step="Train one with `graft train`, or push one with `graft adapters push`.",
            )
        return await self._get_version(version_name(adapter, newest))

    async def _get_version(self, name: str) -> pb.Version:
        stub, request = self._connection.registry, pb.GetVersionRequest(name=name)
        return await self._connection.call(stub.GetVersion, request, _PEER)

    async def aliases(self, adapter: str = "-") -> Sequence[Alias]:
        """The aliases of an adapter, or of all of them."""
        request = pb.ListAliasesRequest(parent=self._full_or_all(adapter))
        stub = self._connection.registry
        answer = await self._connection.call(stub.ListAliases, request, _PEER)
        return [convert.alias(one) for one in answer.aliases]

    async def promote(
        self,
        adapter: str,
        version: int,
        *,
        alias: str = DEFAULT_ALIAS,
        expected: int | None = None,
        etag: str = "",
        canaries: Mapping[int, float] | None = None,
        gate: Sequence[str] = (),
        reason: str = "",
        validate_only: bool = False,
        request_id: str | None = None,
    ) -> Alias:
        """Points an alias at a version.

        Args:
            adapter: the adapter.
            version: number of the version to point at.
            alias: the alias to move.
            expected: number of the version that it must name now; 0 if it must not exist; None for
                no condition.
            etag: the etag that it must have now; empty for no condition.
            canaries: other versions by number, with their part of the requests in percent.
            gate: conditions that must hold, besides the alias' policy; see
                graft.conditions.parse_condition.
            reason: why, for its history.
            validate_only: check everything and answer what would be, but change nothing.
            request_id: makes a repeated call answer what the first one did.

        Raises:
            GraftError: ALIAS_MOVED when it does not name the expected version, VERSION_NOT_FOUND,
                DELETED, PROTECTED, GATE_REFUSED naming the condition and both numbers.
        """
        full = self._full(adapter)
        request = pb.SetAliasRequest(
            name=alias_name(full, alias),
            version=version_name(full, version),
            reason=reason,
            etag=etag,
            canaries=[
                pb.Canary(version=version_name(full, number), weight_percent=percent)
                for number, percent in (canaries or {}).items()
            ],
            gate=[parse_condition(one) for one in gate],
            validate_only=validate_only,
            request_id=request_id or uuid.uuid4().hex,
        )
        if expected is not None:
            request.expected_version = version_name(full, expected) if expected else ""
        stub = self._connection.registry
        return convert.alias(await self._connection.call(stub.SetAlias, request, _PEER))

    async def delete_alias(
        self, adapter: str, *, alias: str, etag: str = "", reason: str = ""
    ) -> Alias:
        """Removes an alias; its history stays.

        Raises:
            GraftError: ALIAS_NOT_FOUND, ALIAS_MOVED, PROTECTED.
        """
        request = pb.DeleteAliasRequest(
            name=alias_name(self._full(adapter), alias), etag=etag, reason=reason
        )
        stub = self._connection.registry
        return convert.alias(await self._connection.call(stub.DeleteAlias, request, _PEER))

    async def rollback(
        self, adapter: str, *, alias: str = DEFAULT_ALIAS, reason: str = ""
    ) -> Alias:
        """Points an alias back at the version that it named before.

        Raises:
            GraftError: NO_PREVIOUS_VERSION, ALIAS_NOT_FOUND.
        """
        request = pb.RollbackAliasRequest(
            name=alias_name(self._full(adapter), alias), reason=reason
        )
        stub = self._connection.registry
        return convert.alias(await self._connection.call(stub.RollbackAlias, request, _PEER))

    async def history(self, adapter: str, *, alias: str = DEFAULT_ALIAS) -> Sequence[Alias]:
        """Where an alias pointed, newest first, with who moved it and why.

        Raises:
            GraftError: ALIAS_NOT_FOUND.
        """
        stub, name = self._connection.registry, alias_name(self._full(adapter), alias)

        async def page(token: str) -> pb.ListAliasHistoryResponse:
            request = pb.ListAliasHistoryRequest(name=name, page_size=1000, page_token=token)
            return await self._connection.call(stub.ListAliasHistory, request, _PEER)

        return [convert.alias(one) async for answer in pages(page) for one in answer.aliases]

    async def push(
        self,
        adapter: str,
        folder: str | Path,
        *,
        base: str | Path | None = None,
        sources: Sequence[str] = (),
        progress: Transferred | None = None,
        note: Note | None = None,
        request_id: str | None = None,
    ) -> Version:
        """Makes a PEFT folder the adapter's next version; creates adapter and base where needed.

        Args:
            adapter: the adapter.
            folder: what save_pretrained() wrote, also years ago: an adapter_model.bin is converted
                in a process of its own, and what does not belong to a version is left out.
            base: name of a recorded base, or a base model's folder; not needed when the adapter
                exists, or when adapter_config.json names the base's folder.
            sources: where it came from, for its lineage, for example "hf://org/name@{commit}".
            progress: called while files are uploaded.
            note: called with a sentence for everything that was left out, added or converted.
            request_id: makes a repeated call answer what the first one did.

        Raises:
            GraftError: ADAPTER_UNUSABLE (a pickle, a missing file), VERSION_REFUSED, WRONG_BASE,
                BASE_NOT_FOUND, STORAGE_FULL; NOT_INSTALLED (torch, for an adapter_model.bin).
        """
        folder = Path(folder)
        async with intake(folder) as taken:
            for sentence in taken.notes if note else ():
                note(sentence)  # type: ignore[misc]
            fingerprint = await self._ensure(adapter, folder, base)
            files = [file for file, _ in taken.files.values()]
            request = pb.CommitVersionRequest(
                parent=self._full(adapter),
                files=files,
                base_fingerprint=fingerprint,
                lineage=pb.Lineage(sources=sources) if sources else None,
                request_id=request_id or uuid.uuid4().hex,
            )
            stub, timeout_s = self._connection.registry, max(300.0, self._connection.timeout_s)
            async with self._connection.lease([file.digest for file in files], "upload"):
                here = tuple(taken.files.values())
                await upload_files(self._connection.blobs, here, progress)
                answer = await self._connection.call(
                    stub.CommitVersion, request, _PEER, timeout_s=timeout_s
                )
        return convert.version(answer)

    async def _ensure(self, adapter: str, folder: Path, base: str | Path | None) -> str:
        """Makes sure that adapter and base exist; answers the fingerprint of the adapter's base."""
        try:
            existing = await self.get(adapter)
        except NotFoundError:
            found = await self._bases.resolve(base if base else folders.base_of(folder))
            await self.create(adapter, found.name)
            return found.fingerprint
        recorded = await self._bases.get(existing.base)
        if base is None:
            return recorded.fingerprint
        if Path(base).is_dir():
            read = await asyncio.to_thread(read_base, Path(base), existing.base)
            return read.fingerprint.digest
        return (await self._bases.resolve(base)).fingerprint

    async def pull(
        self,
        reference: str,
        folder: str | Path,
        *,
        policy: SignaturePolicy = SignaturePolicy.OFF,
        trusted: Sequence[PublicKey] = (),
        progress: Transferred | None = None,
        note: Note | None = None,
    ) -> Version:
        """Writes a version to a new folder in PEFT's layout; docs/versions.md says what loads which kind.

        The folder appears only when every file is there and its digest is right.

        Args:
            reference: "bot", "bot@production" or "bot:7".
            folder: a new one.
            policy: what a version that no trusted key signed means; see graft.signatures.
            trusted: see graft.keys.load_trusted.
            progress: called while files are fetched.
            note: called with a sentence about what a policy of warn found.

        Raises:
            GraftError: ALREADY_EXISTS (the folder), VERSION_NOT_FOUND, DIGEST_MISMATCH,
                SIGNATURE_REQUIRED, SIGNATURE_INVALID.
        """
        version = await self._version(reference)
        verdict = check(policy, version, trusted)
        if verdict.problem and note:
            note(f"{version.name} is not signed by a trusted key: {verdict.problem}.")
        with folders.new_folder(Path(folder)) as part:
            await fetch_files(self._connection.blobs, version.manifest.files, part, progress)
        return convert.version(version)

    async def sign(self, reference: str, key: PrivateKey) -> Version:
        """Signs a version and stores the signature; again, it is stored once.

        Raises:
            GraftError: VERSION_NOT_FOUND; DIGEST_MISMATCH when its manifest is not what its digest says.
        """
        version = await self._version(reference)
        digest = digest_message(version.manifest)
        if digest != version.digest:
            raise GraftError(
                Reason.DIGEST_MISMATCH,
                f"The manifest of {version.name} has the digest {digest}, and the registry says "
                f"{version.digest}",
                next_step="Do not sign it. If `graft version` is not the registry's, update graft.",
            )
        request = pb.SignVersionRequest(name=version.name, envelope_json=sign(digest, key))
        stub = self._connection.registry
        return convert.version(await self._connection.call(stub.SignVersion, request, _PEER))

    async def verify(self, reference: str, trusted: Sequence[PublicKey]) -> tuple[Version, Verdict]:
        """A version, and which of the trusted keys signed its manifest, or why none did.

        Raises:
            GraftError: VERSION_NOT_FOUND.
        """
        version = await self._version(reference)
        return convert.version(version), check(SignaturePolicy.WARN, version, trusted)


def describe(version: Version) -> str:
    """A version as people write it: "bot:7"."""
    return f"{short_id(version.name.rpartition('/versions/')[0])}:{version.number}"
