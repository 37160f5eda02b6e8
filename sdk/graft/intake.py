"""Makes a version's files of a PEFT folder as people have them, without touching the folder.

Old weights are converted, and what older versions of PEFT did not write into adapter_config.json is
added as the tensors and PEFT's defaults have it. Whether the result may be a version is the registry's
to say.
"""

from __future__ import annotations

import asyncio
import json
import re
import struct
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.common.v1.common_pb2 import File
from graft.digests import digest_file
from graft.folders import CONFIG, OLD_WEIGHTS, WEIGHTS, read_folder
from graft.legacy import bin_file

_LORA_A = re.compile(r"(?:.*\.)?([^.]+)\.lora_(?:A|embedding_A)(?:\.weight)?")
_MAX_HEADER_BYTES = 16 * 1024 * 1024
# What LoraConfig takes where nothing is written.
_DEFAULT_ALPHA = 8


@dataclass(frozen=True, slots=True)
class Intake:
    """Files to upload with where they lie, and what people should know of how they came about."""

    files: Mapping[str, tuple[File, Path]]
    notes: tuple[str, ...]


@asynccontextmanager
async def intake(folder: Path) -> AsyncIterator[Intake]:
    """The files of a version, which lie where they are said to until the block ends.

    Raises:
        GraftError: ADAPTER_UNUSABLE (no adapter, a link to elsewhere, a pickle of more than tensors),
            NOT_INSTALLED (torch, for a .bin).
    """
    contents = await asyncio.to_thread(read_folder, folder)
    paths, notes = dict(contents.files), contents.notes
    with tempfile.TemporaryDirectory(prefix="graft-push-") as made:
        if contents.old_weights is not None:
            paths[WEIGHTS] = Path(made) / WEIGHTS
            count = await bin_file.convert(contents.old_weights, paths[WEIGHTS])
            notes.append(f"Converted {count} tensors of {OLD_WEIGHTS} to {WEIGHTS}.")
        added = await asyncio.to_thread(_complete, paths[CONFIG], paths[WEIGHTS], Path(made))
        if added:
            paths[CONFIG] = Path(made) / CONFIG
            said = ", ".join(f"{key} {value}" for key, value in added.items())
            notes.append(f"Added to {CONFIG}, which did not say it: {said}.")
        files = {name: (await asyncio.to_thread(_describe, name, path), path)
                 for name, path in sorted(paths.items())}  # fmt: skip
        yield Intake(files, tuple(notes))


def _describe(name: str, path: Path) -> File:
    return File(path=name, digest=digest_file(path), size_bytes=path.stat().st_size)


def _complete(config_path: Path, weights: Path, made: Path) -> dict[str, Any]:
    """Writes a completed configuration into made where something is missing; answers what it added."""
    try:
        config = json.loads(config_path.read_text("utf-8"))
    except (ValueError, RecursionError):
        return {}  # The registry says what is wrong with it.
    if not isinstance(config, dict):
        return {}
    known = _known(weights)
    added = {key: value for key, value in known.items() if config.get(key) is None}
    if added:
        (made / CONFIG).write_text(json.dumps(config | added, indent=2), "utf-8")
    return added


def _known(weights: Path) -> dict[str, Any]:
    """What a LoRA's tensors say of its configuration; nothing for anything else."""
    ranks, modules = set(), set()
    for tensor, info in _header(weights).items():
        match = _LORA_A.fullmatch(tensor)
        shape = info.get("shape") if isinstance(info, dict) else None
        if match and isinstance(shape, list) and len(shape) == 2:
            modules.add(match[1])
            ranks.add(shape[0])
    if not modules:
        return {}
    known = {"peft_type": "LORA", "lora_alpha": _DEFAULT_ALPHA, "target_modules": sorted(modules)}
    return known | ({"r": ranks.pop()} if len(ranks) == 1 else {})


def _header(weights: Path) -> dict[str, Any]:
    with weights.open("rb") as file:
        prefix = file.read(8)
        size_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        text = file.read(size_bytes) if size_bytes <= _MAX_HEADER_BYTES else b""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        return {}  # As above.
    return header if isinstance(header, dict) else {}
