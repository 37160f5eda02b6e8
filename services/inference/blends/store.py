"""The files of blends on this machine's disk: computed where they are not, verified each time that they are taken.

A folder holds, beside the adapter, blend.json: what it is made of, and the digests of its files. So it outlives the
process that made it, and rot is noticed and mended by computing anew.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from graft.digests import digest_file
from graft.errors import GraftError, Reason

from services.combining.plain import TEMPLATE, NotCombinableError, Source, check_plain
from services.common.logs import get_logger
from services.inference.blends.base import Blender
from services.inference.cache import NEEDED, AdapterCache, Contents, Held, read_config
from services.inference.domain import AdapterFile, AdapterVersion, Blend
from services.inference.metrics import InferenceMetrics

_NOTE = "blend.json"
# For blend.json and adapter_config.json.
_SMALL_BYTES = 64 * 1024
# Parts may be stored in 16 bits; a blend is in 32.
_WIDER = 2


class BlendStore:
    """Blends in the cache that their parts are in: they make room for each other.

    Args:
        cache: which bounds all of it.
        metrics: gets the seconds of each blend as the stage "blend".
    """

    def __init__(self, cache: AdapterCache, blender: Blender, metrics: InferenceMetrics) -> None:
        self._cache, self._blender, self._metrics = cache, blender, metrics

    async def hold(
        self, version: AdapterVersion, *, make_room: bool = True
    ) -> tuple[Held, AdapterVersion]:
        """A blend's folder, and the blend with the files that it turned out to have.

        Raises:
            GraftError: of AdapterCache.hold and Blender.blend; ADAPTER_UNUSABLE.
        """
        contents = _Blended(version, self._cache, self._blender, self._metrics, make_room)
        held = await self._cache.hold_of(version, contents, make_room=make_room)
        files = await asyncio.to_thread(_files, held.folder, version)
        return held, replace(version, files=files)


class _Blended(Contents):
    """What one blend's folder holds."""

    def __init__(
        self,
        version: AdapterVersion,
        cache: AdapterCache,
        blender: Blender,
        metrics: InferenceMetrics,
        make_room: bool,
    ) -> None:
        assert version.blend is not None
        self._version, self._blend = version, version.blend
        self._cache, self._blender, self._metrics = cache, blender, metrics
        self._make_room = make_room

    @property
    def size_bytes(self) -> int:
        parts = (one.version for one in self._blend.parts)
        # As many numbers as all parts together, and those of each at the rank of the whole.
        wide = sum(
            each.size_bytes * max(1.0, self._version.rank / max(1, each.rank)) for each in parts
        )
        return _WIDER * round(wide) + _SMALL_BYTES

    def are_right(self, folder: Path) -> bool:
        files = _files(folder, self._version)
        try:
            return bool(files) and all(digest_file(folder / f.path) == f.digest for f in files)
        except OSError:
            return False

    async def fill(self, folder: Path) -> None:
        version, blend = self._version, self._blend
        async with AsyncExitStack() as stack:
            sources = []
            for part in blend.parts:
                held = await self._cache.hold(part.version, make_room=self._make_room)
                stack.callback(held.release)
                _check(blend, part.version, held.folder)
                sources.append(Source(part.version.reference, held.folder, part.weight))
            with self._metrics.stage("blend"):
                await self._blender.blend(blend.reference, sources, blend.how, version.rank, folder)
        await asyncio.to_thread(_write_note, folder, version)
        get_logger().info("blend computed", blend=blend.reference, digest=version.digest)


def _check(blend: Blend, version: AdapterVersion, folder: Path) -> None:
    try:
        check_plain(version.reference, read_config(version, folder))
    except NotCombinableError as error:
        raise GraftError(
            Reason.ADAPTER_UNUSABLE,
            f"{blend.reference} cannot be served: {error}",
            next_step=error.next_step,
            part=version.reference,
        ) from None


def _write_note(folder: Path, version: AdapterVersion) -> None:
    assert version.blend is not None
    paths = [folder / name for name in (*NEEDED, TEMPLATE) if (folder / name).exists()]
    note = {
        "digest": version.digest,
        "blend": version.blend.reference,
        "parts": [[one.version.name, one.version.digest] for one in version.blend.parts],
        "files": [[path.name, digest_file(path), path.stat().st_size] for path in paths],
    }
    (folder / _NOTE).write_text(json.dumps(note, indent=2) + "\n", "utf-8")


def _files(folder: Path, version: AdapterVersion) -> tuple[AdapterFile, ...]:
    """What the note in a folder says; nothing where there is none, or not of this blend."""
    try:
        note = json.loads((folder / _NOTE).read_text("utf-8"))
        files = tuple(AdapterFile(*each) for each in note["files"])
        whole = note["digest"] == version.digest and {each.path for each in files} >= {*NEEDED}
    except (OSError, ValueError, TypeError, KeyError):
        return ()
    return files if whole else ()
