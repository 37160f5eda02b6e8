"""The accelerator slots of one trainer: who holds which. And how many this machine has by default."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

_CPU_SLOTS = 2
_NVIDIA_DEVICE = re.compile(r"nvidia[0-9]+")


def count_nvidia_devices(devices: Path = Path("/dev")) -> int:
    """How many NVIDIA GPUs this machine shows, without loading anything of CUDA."""
    if not devices.is_dir():
        return 0
    return sum(_NVIDIA_DEVICE.fullmatch(path.name) is not None for path in devices.iterdir())


def default_slots(gpus: int) -> int:
    """One slot per GPU; on a machine without any, two jobs at a time."""
    return gpus or _CPU_SLOTS


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
