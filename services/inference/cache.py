"""Adapter files on this machine's disk, by digest: a folder is whole and right, or it is not there.

A folder's name is its version's digest and its content never changes. It is verified when it is made
and again every time it is taken. Room, and who uses what, is the business of folders.py.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graft.digests import digest_file, is_digest
from graft.errors import GraftError, Reason

from services.common.logs import get_logger
from services.inference.domain import AdapterFile, AdapterVersion
from services.inference.file_locks import FileLock
from services.inference.fitness import unusable
from services.inference.folders import Folders
from services.inference.metrics import InferenceMetrics, Tier, Why
from services.inference.registry.base import Registry
from services.inference.templates import FILE as TEMPLATE
from services.inference.templates import MAX_BYTES, ChatTemplate

# Nothing else of a version comes near the engine.
NEEDED = ("adapter_config.json", "adapter_model.safetensors")
_MAX_KNOWN = 4096


class Held:
    """A version's folder, whole and right, which no process removes until it is let go."""

    def __init__(self, folder: Path, kept: FileLock, let_go: Callable[[Held], None]) -> None:
        self.folder = folder
        self._kept, self._let_go = kept, let_go

    def release(self) -> None:
        """Nothing reads it any more; may be called again."""
        self._kept.touch()
        self._kept.release()
        self._let_go(self)


class Contents(ABC):
    """What a folder is to hold, and where that comes from."""

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """At most so many are written."""

    @abstractmethod
    def are_right(self, folder: Path) -> bool:
        """Whether a folder holds it, whole. In any thread."""

    @abstractmethod
    async def fill(self, folder: Path) -> None:
        """Puts it into an empty folder. Raises GraftError when it cannot."""


class AdapterCache:
    """Content-addressed folders below root; processes may share it.

    Args:
        root: made when it does not exist.
        registry: where missing files are fetched.
        metrics: gets the seconds of fetching and verifying, and what the tier holds.
        max_bytes: bound of all folders; the least recently used make room. None for no bound.
    """

    def __init__(
        self,
        root: Path,
        registry: Registry,
        metrics: InferenceMetrics,
        max_bytes: int | None = None,
    ) -> None:
        self._folders = Folders(root, max_bytes, self._note_eviction)
        self._root, self._registry, self._metrics = root, registry, metrics
        self._held: set[Held] = set()
        self._taken: dict[str, Held] = {}
        self._known: dict[str, AdapterVersion] = {}

    async def take(self, version: AdapterVersion) -> Path:
        """As hold(), for as long as this process lives."""
        held = await self.hold(version)
        if version.digest in self._taken:
            held.release()
        return self._taken.setdefault(version.digest, held).folder

    async def hold(self, version: AdapterVersion, *, make_room: bool = True) -> Held:
        """The version's folder, fetched if it is not there or not right; release() it in any case.

        Args:
            make_room: folders that nobody uses may go for it.

        Raises:
            GraftError: DIGEST_MISMATCH, BLOB_NOT_FOUND, ADAPTER_UNUSABLE, STORAGE_FULL, UNAVAILABLE.
        """
        contents = _Fetched(_needed_files(version), self._registry, self._metrics)
        return await self.hold_of(version, contents, make_room=make_room)

    async def hold_of(
        self, version: AdapterVersion, contents: Contents, *, make_room: bool = True
    ) -> Held:
        """As hold(), of contents that come from elsewhere than the registry.

        Raises:
            GraftError: of contents.fill; ADAPTER_UNUSABLE, DIGEST_MISMATCH, STORAGE_FULL.
        """
        if not is_digest(version.digest):
            raise unusable(version, f"its digest {version.digest!r} is none")
        key = version.digest.removeprefix("sha256:")
        self._remember(key, version)
        try:
            kept = await self._folders.use(key)
            try:
                await self._ensure(version, contents, key, make_room=make_room)
                usage = await asyncio.to_thread(self._folders.usage)
            except BaseException:
                kept.release()
                raise
        except OSError as error:
            raise GraftError(
                Reason.STORAGE_FULL,
                f"The files of {version.name} cannot be kept in {self._root}: {error.strerror}",
                next_step="Free space there, or set GRAFT_INFERENCE_CACHE_DIR.",
            ) from error
        held = Held(self._folders.folder(key), kept, self._held.discard)
        self._held.add(held)
        self._metrics.show_tier(Tier.DISK, usage.folders, usage.size_bytes)
        return held

    def close(self) -> None:
        """Lets everything go: for the end, when nothing reads the folders any more."""
        for held in tuple(self._held):
            held.release()

    async def _ensure(
        self, version: AdapterVersion, contents: Contents, key: str, *, make_room: bool
    ) -> None:
        folder = self._folders.folder(key)
        while True:
            absent = not folder.is_dir()
            if await self._verify(folder, contents):
                return
            async with self._folders.alone(key, absent=absent) as alone:
                # Another process may have fetched it meanwhile.
                if alone and not await self._verify(folder, contents):
                    await self._fill(version, contents, key, make_room=make_room)
                if alone:
                    return

    async def _fill(
        self, version: AdapterVersion, contents: Contents, key: str, *, make_room: bool
    ) -> None:
        size_bytes = contents.size_bytes
        async with self._folders.filling(key, size_bytes, make_room=make_room) as part:
            await contents.fill(part)
            if not await self._verify(part, contents):
                raise GraftError(
                    Reason.DIGEST_MISMATCH,
                    f"The files of {version.name} arrived with other bytes than its manifest says",
                    next_step="Check the registry's store with `graft doctor`.",
                )
            await asyncio.to_thread(self._folders.commit, part, key)
        self._metrics.brought(version, Tier.DISK)

    async def _verify(self, folder: Path, contents: Contents) -> bool:
        with self._metrics.stage("verify"):
            return await asyncio.to_thread(contents.are_right, folder)

    def _remember(self, key: str, version: AdapterVersion) -> None:
        self._known.pop(key, None)
        self._known[key] = version
        if len(self._known) > _MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def _note_eviction(self, key: str) -> None:
        version = self._known.get(key)
        get_logger().info("folder evicted", digest=key, version=version and version.name)
        if version is not None:
            self._metrics.evicted(version, Why.ROOM, Tier.DISK)


class _Fetched(Contents):
    """The files of a version as the registry has them."""

    def __init__(
        self, files: list[AdapterFile], registry: Registry, metrics: InferenceMetrics
    ) -> None:
        self._files, self._registry, self._metrics = files, registry, metrics

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self._files)

    def are_right(self, folder: Path) -> bool:
        try:
            return all(digest_file(folder / file.path) == file.digest for file in self._files)
        except OSError:
            return False

    async def fill(self, folder: Path) -> None:
        with self._metrics.stage("fetch"):
            await asyncio.gather(
                *(self._registry.fetch(file, folder / file.path) for file in self._files)
            )


def read_config(version: AdapterVersion, folder: Path) -> dict[str, Any]:
    """adapter_config.json of a folder.

    Raises:
        GraftError: ADAPTER_UNUSABLE.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
    except (ValueError, RecursionError) as error:
        raise unusable(version, f"its adapter_config.json is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise unusable(version, "its adapter_config.json is not an object")
    return config


def read_template(version: AdapterVersion, folder: Path) -> ChatTemplate | None:
    """The chat template that a version brings, from its folder; None where the base's own is meant.

    Raises:
        GraftError: ADAPTER_UNUSABLE.
    """
    if not brings_template(version):
        return None
    try:
        text = (folder / TEMPLATE).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise unusable(version, f"its {TEMPLATE} is not UTF-8 ({error})") from None
    return ChatTemplate(version.name, text)


def brings_template(version: AdapterVersion) -> bool:
    """Whether its conversations are rendered with a template of its own."""
    return any(file.path == TEMPLATE for file in version.files)


def _needed_files(version: AdapterVersion) -> list[AdapterFile]:
    by_path = {file.path: file for file in version.files}
    missing = [path for path in NEEDED if path not in by_path]
    if missing:
        raise unusable(version, f"it has no {missing[0]}")
    template = by_path.get(TEMPLATE)
    if template is None:
        return [by_path[path] for path in NEEDED]
    if template.size_bytes > MAX_BYTES:
        raise unusable(
            version, f"its {TEMPLATE} has {template.size_bytes} bytes, and {MAX_BYTES} are allowed"
        )
    return [*(by_path[path] for path in NEEDED), template]
