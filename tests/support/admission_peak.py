"""A process that admits large or hostile weights and prints what it took: memory, time and answer.

    python -m tests.support.admission_peak FOLDER sparse GIB
    python -m tests.support.admission_peak FOLDER hostile

Memory is the peak of the resident set above what it was before, in bytes.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graft.errors import RefusedError

from services.registry.admission.admit import Admission, Limits
from services.registry.blobs.base import BlobStore
from services.registry.blobs.filesystem import FilesystemBlobStore
from services.registry.domain import BaseContent, File, Fingerprint, Module
from tests.support.admission import BASE, FINGERPRINT, listing, pack, stored
from tests.support.hostile import HEADERS

WIDTH, RANK, FLOAT_BYTES = 65_536, 512, 4
PAIR_BYTES = 2 * WIDTH * RANK * FLOAT_BYTES


def main() -> None:
    """See above."""
    folder, what, *rest = sys.argv[1:]
    if what == "sparse":
        print(json.dumps(asyncio.run(_sparse(Path(folder), int(rest[0])))))
    else:
        print(json.dumps(asyncio.run(_hostile())))


async def _sparse(folder: Path, gib: int) -> dict[str, Any]:
    """Weights of so many GiB that are holes but for their header."""
    modules = gib * 2**30 // PAIR_BYTES
    header: dict[str, Any] = {}
    for place in range(2 * modules):
        layer, letter = divmod(place, 2)
        begin = place * PAIR_BYTES // 2
        header[f"base_model.model.model.layers.{layer}.q_proj.lora_{'AB'[letter]}.weight"] = {
            "dtype": "F32",
            "shape": [[RANK, WIDTH], [WIDTH, RANK]][letter],
            "data_offsets": [begin, begin + PAIR_BYTES // 2],
        }
    start = pack(header, b"")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 1, "target_modules": ["q_proj"]}
    store = FilesystemBlobStore(folder)
    files = [
        _lay(folder, "adapter_config.json", json.dumps(config).encode(), 0),
        _lay(folder, "adapter_model.safetensors", start, modules * PAIR_BYTES),
    ]
    base = BaseContent(
        "namespaces/default/bases/wide",
        Fingerprint(FINGERPRINT, "", "", ""),
        "{}",
        [Module(f"model.layers.{layer}.q_proj", WIDTH, WIDTH) for layer in range(modules)],
    )
    return await _measure(store, files, base)


def _lay(folder: Path, path: str, start: bytes, hole_bytes: int) -> File:
    """Puts a file where the store has it; the store checks the digest of what is read whole."""
    digest = hashlib.sha256(start).hexdigest()
    place = folder / "sha256" / digest[:2] / digest[2:]
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + hole_bytes)
    return File(path, f"sha256:{digest}", len(start) + hole_bytes)


async def _hostile() -> dict[str, Any]:
    """Every hostile weights file, one after the other."""
    found = {}
    for what, hostile in HEADERS.items():
        files = hostile.make()
        listed, store = listing(files), await stored(files)
        del files
        found[what] = await _measure(store, listed, BASE)
    return found


async def _measure(store: BlobStore, files: Sequence[File], base: BaseContent) -> dict[str, Any]:
    gc.collect()
    # Makes the kernel forget the peak until now, see proc(5).
    Path("/proc/self/clear_refs").write_text("5")
    before_bytes, begin_s = _resident_bytes("VmRSS"), time.perf_counter()
    try:
        answer = (await Admission(store, Limits()).verify(files, base, FINGERPRINT)).report
        said = {check.name: check.detail for check in answer.checks}
    except RefusedError as error:
        said = {"refused": str(error)}
    return {
        "grown_bytes": _resident_bytes("VmHWM") - before_bytes,
        "seconds": time.perf_counter() - begin_s,
        "size_bytes": sum(file.size_bytes for file in files),
        "said": said,
    }


def _resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field}")


if __name__ == "__main__":
    main()
