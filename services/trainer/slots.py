"""The accelerator slots of one trainer: who holds which. And how many this machine has by default."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_CPU_SLOTS = 2
_NVIDIA_DEVICE = re.compile(r"nvidia([0-9]+)")


def visible_devices(environment: Mapping[str, str], folder: Path = Path("/dev")) -> tuple[str, ...]:
    """The NVIDIA GPUs that workers may be given, without loading anything of CUDA.

    Args:
        environment: CUDA_VISIBLE_DEVICES in it limits them.
        folder: where device files are.
    """
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(part.strip() for part in chosen.split(",") if part.strip() not in ("", "-1"))
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    found = sorted(int(match[1]) for name in names if (match := _NVIDIA_DEVICE.fullmatch(name)))
    return tuple(map(str, found))


def default_slots(devices: Sequence[str]) -> int:
    """One slot per GPU; on a machine without any, two jobs at a time."""
    return len(devices) or _CPU_SLOTS


class Slots:
    """Slots by number, from 0.

    Args:
        total: how many there are.
        on_release: called when some become free.
    """

    def __init__(self, total: int, on_release: Callable[[], None]) -> None:
        self.total = total
        self._free = set(range(total))
        self._on_release = on_release

    @property
    def free(self) -> int:
        """How many nobody holds."""
        return len(self._free)

    def take(self, count: int) -> tuple[int, ...] | None:
        """The lowest free slots, or None when there are fewer than count."""
        if count > len(self._free):
            return None
        taken = tuple(sorted(self._free)[:count])
        self._free.difference_update(taken)
        return taken

    def hold(self, numbers: tuple[int, ...]) -> None:
        """Marks the slots of a worker that was found running."""
        self._free.difference_update(numbers)

    def release(self, numbers: tuple[int, ...]) -> None:
        """Gives slots back; numbers that this trainer does not have any longer are forgotten."""
        self._free.update(number for number in numbers if number < self.total)
        self._on_release()
