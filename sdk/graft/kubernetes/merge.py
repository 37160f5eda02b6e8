"""Merges what an operator wants over what we made, as people expect it of Kubernetes' own objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merged(base: Any, over: Any) -> Any:
    """The value with another merged over it.

    Mappings merge (None removes a key), lists of things with a name merge by name, all else replaces.
    """
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        result = {key: value for key, value in base.items() if over.get(key, ()) is not None}
        for key, value in over.items():
            if value is not None:
                result[key] = merged(base[key], value) if key in base else value
        return result
    if _named(base) and _named(over):
        return _merged_by_name(base, over)
    return over


def _merged_by_name(base: list[Any], over: list[Any]) -> list[Any]:
    changes = {one["name"]: one for one in over}
    kept = [merged(one, changes.pop(one["name"], {})) for one in base]
    return [*kept, *changes.values()]


def _named(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, Mapping) and "name" in one for one in value
    )
