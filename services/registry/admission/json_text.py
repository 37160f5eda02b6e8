"""Reads JSON that somebody sent: strictly, so that no two parsers disagree, and in bounded memory."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

# What opens or separates: each makes at most one key, value or container.
_MARKS = (b",", b":", b"[", b"{")


class NotJsonError(ValueError):
    """The text is not such JSON; says why."""


def read_object(text: bytes, max_items: int = 200_000) -> dict[str, Any]:
    """A JSON object in UTF-8, without keys given twice, NaN, infinity or half surrogate pairs.

    Args:
        text: the JSON.
        max_items: how many keys and values it may hold together.

    Raises:
        NotJsonError: with the reason.
    """
    items = sum(text.count(mark) for mark in _MARKS)
    if items > max_items:
        raise NotJsonError(f"it has about {items} keys and values, and {max_items} are allowed")
    try:
        # A byte order mark, too, is refused: not every parser takes it.
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse)
        if b"\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except NotJsonError:
        raise
    except RecursionError:
        raise NotJsonError("it is nested too deeply") from None
    except UnicodeError:
        raise NotJsonError("it is not text in UTF-8") from None
    except ValueError as error:
        raise NotJsonError(f"it is not JSON ({error})"[:200]) from None
    if not isinstance(found, dict):
        raise NotJsonError("it is not a JSON object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise NotJsonError(f"{twice[:80]!a} is there twice")
    return found


def _refuse(constant: str) -> Any:
    raise NotJsonError(f"{constant} is no number in JSON")
