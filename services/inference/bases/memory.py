"""How much memory an engine for a base takes, by its files and settings, and how much there is: of a container, too.

Estimates: they decide whether a new engine starts beside the old one, and err towards too much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from graft.bases import read_tensors

from services.inference.bases.quantization import NONE, read_quantization
from services.inference.config import InferenceSettings

# Of an engine's process without weights and cache: Python, torch, vLLM, and what it computes with.
_PROCESS_BYTES = 1792 * 1024**2
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_BYTES = {**_FLOATS, "I64": 8, "I32": 4, "I16": 2, "U8": 1, "I8": 1, "BOOL": 1}
_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file "),
    (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "memory.stat",
        "total_inactive_file ",
    ),
)


@dataclass(frozen=True, slots=True)
class Room:
    """What an engine needs beside those that run, and what is there for it, in bytes."""

    needed_bytes: int
    available_bytes: int

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return self.needed_bytes <= self.available_bytes


def engine_bytes(settings: InferenceSettings) -> int:
    """Main memory that an engine on a CPU takes for settings.base.

    Raises:
        GraftError: NOT_A_MODEL.
    """
    quantized = read_quantization(settings.base, settings.quantization).kind != NONE
    float_bytes = 4 if settings.dtype == "float32" else 2
    weights_bytes = lora_features = 0
    for _, dtype, shape in read_tensors(settings.base):
        count = math.prod(shape)
        # Scales of quantized weights stay as they are; floats are converted.
        kept = quantized or dtype not in _FLOATS
        weights_bytes += count * (_BYTES.get(dtype, 1) if kept else float_bytes)
        if len(shape) == 2:
            lora_features += sum(shape)
    slots = max(settings.max_adapters, settings.max_cpu_adapters or 0) + settings.max_adapters
    rows = slots * settings.max_lora_rank
    if settings.lora_page_rank and (settings.max_cpu_adapters or 0) > settings.max_adapters:
        # Where small adapters share slots, more of them may have scales (DoRA, IA3) at once.
        rows += settings.max_adapters * settings.max_lora_rank // settings.lora_page_rank
    lora_bytes = rows * lora_features * float_bytes
    cache_bytes = settings.cpu_kv_cache_gib * 1024**3
    return weights_bytes + lora_bytes + cache_bytes + _PROCESS_BYTES


def available_bytes(root: Path = Path("/")) -> int:
    """Main memory that this process and its children can still have.

    Args:
        root: where proc and sys are.
    """
    found = [_of_the_machine(root)]
    for folder in _cgroups(root):
        for limit, used, stat, field in _CGROUPS:
            try:
                free = int((folder / limit).read_text()) - int((folder / used).read_text())
                lines = (folder / stat).read_text().splitlines()
            except (OSError, ValueError):  # There is no limit, or it is "max".
                continue
            # Pages of files go when room is needed.
            found.append(
                free + sum(int(line.split()[1]) for line in lines if line.startswith(field))
            )
    return max(0, min(found))


def _of_the_machine(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _cgroups(root: Path) -> list[Path]:
    """This process' own and all above it: each may have a limit."""
    top = root / "sys/fs/cgroup"
    found = [top, top / "memory"]
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        own = (top / "memory" if controllers else top) / path.strip("/")
        while own != top and top in own.parents:
            found.append(own)
            own = own.parent
    return found
