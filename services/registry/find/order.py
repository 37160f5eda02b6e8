"""Reads order_by: one field, and which way."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from graft.errors import GraftError, Reason

_ORDER = re.compile(r"\s*([a-z_]+)(?:\.(\S+))?(?:\s+(asc|desc))?\s*")
_MAX_KEY = 255


@dataclass(frozen=True, slots=True)
class Order:
    """What a listing is sorted by; key is the metric's, else empty."""

    field: str
    key: str = ""
    descending: bool = False


def parse_order(text: str, fields: Collection[str], default: Order) -> Order:
    """The order of a listing.

    Args:
        text: for example "create_time desc"; empty for the default.
        fields: those that can be sorted by; "metrics" stands for each metric.
        default: what an empty text means.

    Raises:
        GraftError: INVALID_REQUEST, naming the fields.
    """
    if not text.strip():
        return default
    found = _ORDER.fullmatch(text)
    if found is not None:
        field, key, way = found[1], found[2] or "", found[3]
        fits = field in fields and (field == "metrics") == bool(key)
        if fits and len(key) <= _MAX_KEY and "\0" not in key:
            return Order(field, key, way == "desc")
    names = ", ".join("metrics.NAME" if one == "metrics" else one for one in fields)
    raise GraftError(
        Reason.INVALID_REQUEST,
        f"order_by is {text[:80]!r}",
        next_step=f"Name one of {names}, and asc or desc after it.",
    )
