"""How PEFT's configurations name modules and layers: by paths, their ends, and layers' numbers.

Finds them by looking up a path's ends, so that its cost does not grow with what is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


class Selector(Generic[T]):
    """Names of modules with a value each.

    A name is a module's path, or an end of it that begins after a dot; with "^" only the path.

    Args:
        values: by name; the first that fits decides, as in PEFT's get_pattern_key.
    """

    def __init__(self, values: Mapping[str, T]) -> None:
        self.values = values
        self._order = {name: place for place, name in enumerate(values)}

    def find(self, path: str) -> str | None:
        """The first name that fits a module's path."""
        if not self._order:
            return None
        fitting = [end for end in (f"^{path}", *ends(path)) if end in self._order]
        return min(fitting, key=self._order.__getitem__, default=None)

    def fitting(self, path: str) -> list[str]:
        """All names that fit a module's path."""
        return [end for end in (f"^{path}", *ends(path)) if end in self._order]


def ends(path: str) -> list[str]:
    """A path and its ends, the longest first: a.b.c, b.c, c."""
    found = [path]
    while "." in path:
        path = path.partition(".")[2]
        found.append(path)
    return found


def layer_of(path: str) -> tuple[str, int | None, str]:
    """A path around its layer's number, the first in it: ("model.layers", 3, "mlp.up_proj").

    A path without one is ("", None, path).
    """
    parts = path.split(".")
    for place, part in enumerate(parts):
        if part.isdigit() and place and len(part) < 10:
            return ".".join(parts[:place]), int(part), ".".join(parts[place + 1 :])
    return "", None, path


@dataclass(frozen=True, slots=True)
class Layers:
    """layers_to_transform and layers_pattern; wanted is None for all layers."""

    wanted: frozenset[int] | None
    patterns: tuple[str, ...]

    def has(self, path: str) -> bool:
        """Whether the module is in one of the layers, as PEFT's check_target_module_exists has it."""
        if self.wanted is None:
            return True
        before, layer, _ = layer_of(path)
        if self.patterns:
            layer = self._by_pattern(path)
        elif "." not in before:
            layer = None
        return layer in self.wanted

    def _by_pattern(self, path: str) -> int | None:
        parts = path.split(".")
        for pattern in self.patterns:
            for place in range(len(parts) - 1):
                before = ".".join(parts[: place + 1])
                if parts[place + 1].isdigit() and pattern in ends(before):
                    return int(parts[place + 1][:9])
        return None
