"""A registry in this process: for tests, and for a service that serves a base alone."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

from graft.bases import read_base
from graft.digests import digest_bytes, digest_file
from graft.errors import GraftError, Reason
from graft.names import DEFAULT_ALIAS, ModelReference, adapter_name, version_name
from graft.rollout_policy import Rollout, RolloutReport

from services.inference.bases.domain import BaseReference, BaseVersion
from services.inference.domain import (
    AdapterFile,
    AdapterSeen,
    AdapterVersion,
    AliasSeen,
    Change,
    Event,
    Snapshot,
)
from services.inference.registry.base import Registry


class MemoryRegistry(Registry):
    """Keeps a log of changes; set available to False and every call fails as if it were away.

    Args:
        fingerprint: of the base, as record_base answers it; read from the base if empty.
    """

    def __init__(self, fingerprint: str = "") -> None:
        self._fingerprint = fingerprint
        self._log: list[Event] = []
        self._grown = asyncio.Condition()
        self._blobs: dict[str, Path] = {}
        self._latest: dict[str, AdapterSeen] = {}
        self._versions: dict[str, AdapterVersion] = {}
        self._aliases: dict[tuple[str, str], AliasSeen] = {}
        self._bases: dict[str, str] = {}
        self._base_versions: dict[str, list[BaseVersion]] = {}
        self._base_aliases: dict[tuple[str, str], int] = {}
        self.available = True
        self.fetched: list[str] = []

    @property
    def adapters(self) -> Mapping[str, AdapterSeen]:
        """By resource name."""
        return self._latest

    async def add_adapter(self, name: str, base: str) -> None:
        """Creates an adapter by its resource name."""
        await self._record(AdapterSeen(name, base, 0))

    async def add_version(
        self,
        adapter: str,
        folder: Path,
        *,
        rank: int = 8,
        base_fingerprint: str | None = None,
        peft_type: str = "LORA",
    ) -> AdapterVersion:
        """Commits the files of a folder as the adapter's next version."""
        number = self._latest[adapter].latest + 1
        files = []
        for path in sorted(folder.iterdir()):
            digest = digest_file(path)
            files.append(AdapterFile(path.name, digest, path.stat().st_size))
            self._blobs[digest] = path
        digest = digest_bytes(repr((adapter, number, files)).encode())
        version = AdapterVersion(
            name=version_name(adapter, number),
            adapter=adapter,
            number=number,
            digest=digest,
            base_fingerprint=self._fingerprint if base_fingerprint is None else base_fingerprint,
            peft_type=peft_type,
            rank=rank,
            files=tuple(files),
            manifest_digest=digest,
        )
        await self._record(version)
        return version

    async def add_signature(self, name: str, envelope: str) -> None:
        """Keeps an envelope beside a version."""
        version = self._versions[name]
        await self._record(replace(version, envelopes=(*version.envelopes, envelope)))

    async def set_alias(
        self,
        adapter: str,
        alias: str,
        number: int,
        canaries: Mapping[int, float] | None = None,
        rollout: Rollout | None = None,
    ) -> None:
        """Points an alias at a version."""
        name, revision = version_name(adapter, number), len(self._log) + 1
        split = tuple((canaries or {}).items())
        await self._record(
            AliasSeen(adapter, alias, name, revision, split, rollout, f"etag-{revision}")
        )

    async def take_back(self, alias: str, etag: str, report: RolloutReport) -> None:
        seen = self._alias_at(alias, etag)
        if report.version not in dict(seen.canaries):
            raise GraftError(
                Reason.NO_ROLLOUT,
                f"{alias} has no canary {report.version}",
                next_step="Read the alias again.",
            )
        left = {number: part for number, part in seen.canaries if number != report.version}
        limits = None if seen.rollout is None else seen.rollout.limits
        await self.set_alias(seen.adapter, seen.alias, seen.number, left, Rollout(limits))

    async def advance(self, alias: str, etag: str, reason: str) -> None:
        seen = self._alias_at(alias, etag)
        number, percent = seen.canaries[0] if len(seen.canaries) == 1 else (0, 100.0)
        after = None if seen.rollout is None else seen.rollout.next_percent(percent)
        if after is None:
            raise GraftError(
                Reason.NO_ROLLOUT, f"{alias} has no next step", next_step="Read the alias again."
            )
        whole = after >= 100
        await self.set_alias(
            seen.adapter,
            seen.alias,
            number if whole else seen.number,
            {} if whole else {number: after},
            None if whole else seen.rollout,
        )

    def _alias_at(self, alias: str, etag: str) -> AliasSeen:
        self._check()
        adapter, _, name = alias.partition("/aliases/")
        seen = self._aliases[adapter, name]
        if seen.etag != etag:
            raise GraftError(
                Reason.ALIAS_MOVED, f"{alias} was moved", next_step="Read the alias again."
            )
        return seen

    async def break_watches(self) -> None:
        """Ends every running watch as a lost connection would."""
        was, self.available = self.available, False
        async with self._grown:
            self._grown.notify_all()
        await asyncio.sleep(0)
        self.available = was

    async def _record(self, change: Change) -> None:
        match change:
            case AdapterSeen():
                self._latest[change.name] = change
            case AdapterVersion():
                seen = self._latest[change.adapter]
                latest = max(seen.latest, change.number)
                self._latest[change.adapter] = AdapterSeen(seen.name, seen.base, latest)
                self._versions[change.name] = change
            case AliasSeen():
                self._aliases[change.adapter, change.alias] = change
        self._log.append(Event(len(self._log) + 1, time.time(), change))
        async with self._grown:
            self._grown.notify_all()

    def _check(self) -> None:
        if not self.available:
            raise GraftError(
                Reason.UNAVAILABLE,
                "the registry cannot be reached",
                next_step="Try again later.",
            )

    async def record_base(self, folder: Path, name: str) -> str:
        self._check()
        if not self._bases and self._fingerprint:
            self._bases[name] = self._fingerprint
        if name not in self._bases:
            base = await asyncio.to_thread(read_base, folder, name)
            self._bases[name] = base.fingerprint.digest
        self._fingerprint = self._fingerprint or self._bases[name]
        return self._bases[name]

    async def add_base_version(self, base: str, folder: Path) -> BaseVersion:
        """Commits the files of a folder as the base's next version."""
        files = []
        for path in sorted(folder.iterdir()):
            digest = digest_file(path)
            files.append(AdapterFile(path.name, digest, path.stat().st_size))
            self._blobs[digest] = path
        versions = self._base_versions.setdefault(base, [])
        name = version_name(base, len(versions) + 1)
        fingerprint = (await asyncio.to_thread(read_base, folder, base)).fingerprint.digest
        digest = digest_bytes(repr((name, files)).encode())
        versions.append(BaseVersion(name, digest, fingerprint, tuple(files)))
        return versions[-1]

    def set_base_alias(self, base: str, alias: str, number: int) -> None:
        """Points an alias at a base's version."""
        self._base_aliases[base, alias] = number

    async def base_version(self, reference: BaseReference) -> BaseVersion:
        self._check()
        versions = self._base_versions.get(reference.base, [])
        alias = reference.alias or DEFAULT_ALIAS
        number = reference.number or self._base_aliases.get((reference.base, alias))
        if number is None and reference.alias is not None:
            raise _missing(Reason.ALIAS_NOT_FOUND, f"{reference.base} has no alias {alias!r}")
        number = number or len(versions)
        if not 1 <= number <= len(versions):
            raise _missing(Reason.VERSION_NOT_FOUND, f"{reference.base} has no such version")
        return versions[number - 1]

    async def snapshot(self) -> Snapshot:
        self._check()
        return Snapshot(len(self._log), tuple(self._latest.values()), tuple(self._aliases.values()))

    async def watch(self, after_revision: int) -> AsyncIterator[Event]:
        position = after_revision
        while True:
            self._check()
            if position < len(self._log):
                yield self._log[position]
                position += 1
                continue
            async with self._grown:
                await self._grown.wait()

    async def version(self, name: str) -> AdapterVersion:
        self._check()
        found = self._versions.get(name)
        if found is None:
            raise _missing(Reason.VERSION_NOT_FOUND, f"{name} does not exist")
        return found

    async def find(self, reference: ModelReference) -> AdapterVersion:
        self._check()
        adapter = adapter_name(reference.namespace, reference.name)
        if adapter not in self._latest:
            raise _missing(Reason.ADAPTER_NOT_FOUND, f"{adapter} does not exist")
        if reference.version is not None:
            return await self.version(version_name(adapter, reference.version))
        alias = self._aliases.get((adapter, reference.alias or DEFAULT_ALIAS))
        if alias is not None:
            return await self.version(alias.version)
        if reference.alias is not None:
            raise _missing(Reason.ALIAS_NOT_FOUND, f"{adapter} has no alias {reference.alias!r}")
        return await self.version(version_name(adapter, self._latest[adapter].latest))

    async def fetch(self, file: AdapterFile, target: Path) -> None:
        self._check()
        source = self._blobs.get(file.digest)
        if source is None:
            raise _missing(Reason.BLOB_NOT_FOUND, f"{file.digest} is not stored")
        shutil.copyfile(source, target)
        self.fetched.append(file.digest)

    async def close(self) -> None:
        self.available = False


def _missing(reason: Reason, what: str) -> GraftError:
    return GraftError(reason, what, next_step="ListModels names what can be asked.")
