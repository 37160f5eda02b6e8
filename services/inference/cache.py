"""Adapter files on this machine's disk, by digest: a folder is whole and right, or it is not there.

A folder's name is its version's digest and its content never changes. It is verified when it is made
and again every time it is taken.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

from graft.digests import digest_file, is_digest
from graft.errors import GraftError, Reason

from services.inference.domain import AdapterFile, AdapterVersion
from services.inference.fitness import unusable
from services.inference.metrics import InferenceMetrics
from services.inference.registry.base import Registry
from services.inference.templates import FILE as TEMPLATE
from services.inference.templates import MAX_BYTES, ChatTemplate

# Nothing else of a version comes near the engine.
_NEEDED = ("adapter_config.json", "adapter_model.safetensors")


class AdapterCache:
    """Content-addressed folders below root; processes may share it.

    Args:
        root: made when it does not exist.
        registry: where missing files are fetched.
        metrics: gets the seconds of fetching and verifying.
    """

    def __init__(self, root: Path, registry: Registry, metrics: InferenceMetrics) -> None:
        self._root = root
        self._registry = registry
        self._metrics = metrics
        self._numbers = itertools.count(1)

    async def take(self, version: AdapterVersion) -> Path:
        """The version's folder, fetched if it is not there.

        Raises:
            GraftError: DIGEST_MISMATCH, BLOB_NOT_FOUND, ADAPTER_UNUSABLE, STORAGE_FULL, UNAVAILABLE.
        """
        if not is_digest(version.digest):
            raise unusable(version, f"its digest {version.digest!r} is none")
        files = _needed_files(version)
        folder = self._root / version.digest.removeprefix("sha256:")
        with self._metrics.stage("verify"):
            if await asyncio.to_thread(_is_right, folder, files):
                return folder
        with self._metrics.stage("fetch"):
            part = await self._fetch(version, files, folder)
        with self._metrics.stage("verify"):
            right = await asyncio.to_thread(_is_right, part, files)
        if not right:
            await asyncio.to_thread(shutil.rmtree, part)
            raise GraftError(
                Reason.DIGEST_MISMATCH,
                f"The files of {version.name} arrived with other bytes than its manifest says",
                next_step="Check the registry's store with `graft doctor`.",
            )
        await asyncio.to_thread(_put_in_place, part, folder)
        return folder

    async def _fetch(self, version: AdapterVersion, files: list[AdapterFile], folder: Path) -> Path:
        part = self._root / f".{folder.name}.{os.getpid()}.{next(self._numbers)}.part"
        try:
            part.mkdir(parents=True)
            await asyncio.gather(*(self._registry.fetch(file, part / file.path) for file in files))
        except BaseException as error:
            await asyncio.to_thread(shutil.rmtree, part, ignore_errors=True)
            if isinstance(error, OSError):
                raise GraftError(
                    Reason.STORAGE_FULL,
                    f"The files of {version.name} cannot be kept in {self._root}: {error.strerror}",
                    next_step="Free space there, or set GRAFT_INFERENCE_CACHE_DIR.",
                ) from error
            raise
        return part


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
    missing = [path for path in _NEEDED if path not in by_path]
    if missing:
        raise unusable(version, f"it has no {missing[0]}")
    template = by_path.get(TEMPLATE)
    if template is None:
        return [by_path[path] for path in _NEEDED]
    if template.size_bytes > MAX_BYTES:
        raise unusable(
            version, f"its {TEMPLATE} has {template.size_bytes} bytes, and {MAX_BYTES} are allowed"
        )
    return [*(by_path[path] for path in _NEEDED), template]


def _is_right(folder: Path, files: list[AdapterFile]) -> bool:
    try:
        return all(digest_file(folder / file.path) == file.digest for file in files)
    except FileNotFoundError:
        return False


def _put_in_place(part: Path, folder: Path) -> None:
    """Renames part to folder; what lies there was found wrong, or another process was faster."""
    try:
        part.rename(folder)
    except OSError:
        aside = part.with_suffix(".old")
        folder.rename(aside)
        part.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
