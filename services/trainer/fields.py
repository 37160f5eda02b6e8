"""Checks of a spec's fields: each takes the field's path and value, and gives the value or its default."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from graft.errors import GraftError, Reason
from graft.names import check_id

_MODULE_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def invalid_field(path: str, given: object, allowed: str, next_step: str = "") -> GraftError:
    """The error of a spec's field."""
    return GraftError(
        Reason.INVALID_SPEC,
        f"{path} is {given!r}; it must be {allowed}",
        next_step=next_step or f"Change {path} in the job's spec.",
        field=path,
    )


def identifier(path: str, text: str) -> str:
    """A resource's short name.

    Raises:
        GraftError: INVALID_SPEC.
    """
    try:
        return check_id(path, text)
    except GraftError as error:
        raise invalid_field(path, text, "a name", error.next_step) from None


def choice(path: str, value: str, allowed: Sequence[str]) -> str:
    """One of several words; the first when nothing is given.

    Raises:
        GraftError: INVALID_SPEC.
    """
    if not value:
        return allowed[0]
    if value not in allowed:
        raise invalid_field(path, value, one_of(allowed))
    return value


def integer(path: str, value: int, default: int, low: int, high: int) -> int:
    """The value, or the default for 0, within low to high.

    Raises:
        GraftError: INVALID_SPEC.
    """
    chosen = value or default
    if not low <= chosen <= high:
        raise invalid_field(path, value, f"{low} to {high}")
    return chosen


def optional_integer(message: Any, field: str, path: str, default: int, low: int, high: int) -> int:
    """A message's optional field within low to high; the default only where it is left out.

    Raises:
        GraftError: INVALID_SPEC.
    """
    value = getattr(message, field)
    if not message.HasField(field):
        return default
    if not low <= value <= high:
        raise invalid_field(path, value, f"{low} to {high}")
    return int(value)


def number(path: str, value: float, default: float, low: float, high: float) -> float:
    """The value, or the default for 0, within low to high.

    Raises:
        GraftError: INVALID_SPEC.
    """
    chosen = value or default
    if not low <= chosen <= high:  # NaN is not within anything.
        raise invalid_field(path, value, f"{low:g} to {high:g}")
    return chosen


def positive(path: str, value: float, default: float, high: float) -> float:
    """The value, or the default for 0, above 0.

    Raises:
        GraftError: INVALID_SPEC.
    """
    chosen = value or default
    if not (math.isfinite(chosen) and 0 < chosen <= high):
        raise invalid_field(path, value, f"above 0 and at most {high:g}")
    return chosen


def module_names(path: str, names: Sequence[str], words: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of modules, each once; or one of words, alone.

    Raises:
        GraftError: INVALID_SPEC.
    """
    for index, name in enumerate(names):
        at = f"{path}[{index}]"
        if name in words:
            if len(names) > 1:
                raise invalid_field(at, name, "nothing beside it")
        elif _MODULE_NAME.fullmatch(name) is None:
            raise invalid_field(at, name, 'a module\'s name, for example "q_proj"')
        if name in names[:index]:
            raise invalid_field(at, name, "each name only once")
    return tuple(names)


def one_of(names: Sequence[str]) -> str:
    """The names as a list in words."""
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
