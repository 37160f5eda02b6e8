"""The values of a filter: from their text to what their field is compared with."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from services.registry.find.tree import FieldKind, Op, Present, State, Text, Value

_EQUALITY = (Op.EQUAL, Op.NOT_EQUAL)
_ORDERING = (*_EQUALITY, Op.LESS, Op.AT_MOST, Op.MORE, Op.AT_LEAST)
OPS = {
    FieldKind.TEXT: (*_EQUALITY, Op.HAS),
    FieldKind.NUMBER: _ORDERING,
    FieldKind.TIME: _ORDERING,
    FieldKind.STATE: _EQUALITY,
    FieldKind.LABELS: (*_EQUALITY, Op.HAS),
    FieldKind.METRICS: (*_ORDERING, Op.HAS),
}
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_LARGEST = 2**63 - 1


class WrongValueError(ValueError):
    """The message says what would be right."""


def read_value(kind: FieldKind, op: Op, text: str, is_prefix: bool) -> Value:
    """What a field of that kind is compared with.

    Args:
        kind: of the field; LABELS and METRICS for one label and one metric.
        op: how it is compared.
        text: without quotes and without the * at its end.
        is_prefix: whether there was one.

    Raises:
        WrongValueError: text is nothing that the field can be.
    """
    if op is Op.HAS and is_prefix and not text:
        return Present.ANY
    if kind in (FieldKind.TEXT, FieldKind.LABELS):
        return Text(text, is_prefix)
    whole = text + "*" * is_prefix
    match kind:
        case FieldKind.STATE:
            return _state(whole)
        case FieldKind.TIME:
            return _time(whole)
        case _:
            return _number(whole)


def _state(text: str) -> State:
    if text not in {one.value for one in State}:
        raise WrongValueError("write active, deleted or purged")
    return State(text)


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise WrongValueError('write a time like "2026-01-31" or "2026-01-31T09:30:00Z"') from None


def _number(text: str) -> int | float:
    if _NUMBER.fullmatch(text):
        if text.lstrip("+-").isdigit() and len(text) < 20 and abs(int(text)) <= _LARGEST:
            return int(text)
        value = float(text)
        if math.isfinite(value):
            return value
    raise WrongValueError("write a number like 8 or 0.5")
