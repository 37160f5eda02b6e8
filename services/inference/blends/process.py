"""Blends in a process of its own, one at a time, with bounded time and memory: the service computes nothing itself."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from graft.blends import Combining
from graft.errors import GraftError, Reason

from services.combining.plain import Source
from services.inference.blends.base import Blender

_MODULE = "services.inference.blends.run"
# Raised whenever the same parts come out as other files.
_CODE = 1
_KEPT_ERROR_BYTES = 4096


@dataclass(frozen=True, slots=True)
class BlendingOptions:
    """See InferenceSettings."""

    timeout_s: float = 120.0
    memory_bytes: int = 4 * 1024**3
    max_waiting: int = 16


class ProcessBlender(Blender):
    """Starts `python -m services.inference.blends.run` for each blend."""

    def __init__(self, options: BlendingOptions) -> None:
        self._options = options
        self._turn = asyncio.Semaphore(1)
        self._here = 0
        # A release of torch may round another way.
        self._code = f"graft-{_CODE} torch-{metadata.version('torch')}"

    @property
    def code(self) -> str:
        return self._code

    async def blend(
        self, name: str, sources: Sequence[Source], how: Combining, rank: int, folder: Path
    ) -> None:
        if self._here > self._options.max_waiting:
            raise GraftError(
                Reason.OVERLOADED,
                f"{self._here} blends wait to be computed already, and {name} would be one more",
                next_step="Try again later, or register what is asked for often: graft adapters blend.",
            )
        self._here += 1
        try:
            async with self._turn:
                await self._compute(name, sources, how, folder)
        finally:
            self._here -= 1

    async def _compute(
        self, name: str, sources: Sequence[Source], how: Combining, folder: Path
    ) -> None:
        request = {
            "sources": [[one.name, str(one.folder), one.weight] for one in sources],
            "how": asdict(how),
            "folder": str(folder),
            "memory_bytes": self._options.memory_bytes,
            "timeout_s": self._options.timeout_s,
            "parent": os.getpid(),
        }
        with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as log:
            asked.write(json.dumps(request).encode())
            asked.seek(0)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", _MODULE,
                stdin=asked, stdout=asyncio.subprocess.PIPE, stderr=log, env=_environment(),
            )  # fmt: skip
            try:
                async with asyncio.timeout(self._options.timeout_s):
                    said, _ = await process.communicate()
            except TimeoutError:
                raise _unusable(
                    name,
                    f"it was not computed within {self._options.timeout_s:g} s",
                    "Blend by cat or linear, or raise GRAFT_INFERENCE_BLEND_TIMEOUT_S.",
                ) from None
            finally:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
            answer = _answer(said)
            if "error" in answer:
                raise _unusable(name, answer["error"], answer["next_step"])
            if "rank" not in answer:
                log.seek(0, os.SEEK_END)
                log.seek(max(0, log.tell() - _KEPT_ERROR_BYTES))
                raise _broken(name, process.returncode or 0, log.read())


def _environment() -> Mapping[str, str]:
    """That of this process, with its imports; one thread, and no accelerator: those are the engine's."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def _answer(said: bytes) -> dict[str, Any]:
    try:
        found = json.loads(said)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _unusable(name: str, why: str, next_step: str) -> GraftError:
    return GraftError(
        Reason.ADAPTER_UNUSABLE, f"{name} cannot be served: {why}", next_step=next_step
    )


def _broken(name: str, code: int, log: bytes) -> GraftError:
    lines = log.decode("utf-8", "replace").strip().splitlines()
    said = lines[-1] if lines else "it wrote nothing"
    return _unusable(
        name,
        f"its computation ended with code {code}: {said}",
        "If memory ran out, raise GRAFT_INFERENCE_BLEND_MEMORY_BYTES; else read the service's log.",
    )
