"""Declared steps that leave rows out, and the report of what each left out.

Steps that look at tokens are the tokenizer's (see services/trainer/tokens); they report here too.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from services.trainer.formats.base import Content, Example, Place

Step = Literal[
    "drop_empty", "dedupe", "drop_eval_overlap", "min_length_tokens", "max_length_tokens"
]
_WHY: dict[Step, str] = {
    "drop_empty": "a field that must not be empty is",
    "dedupe": "an earlier row says the same",
    "drop_eval_overlap": "they are among the evaluation's rows",
    "min_length_tokens": "they have fewer tokens than min_length_tokens",
    "max_length_tokens": "they have more tokens than max_length_tokens",
}
_NAMED_PLACES = 5
_KEY_BYTES = 16


@dataclass(slots=True)
class Removed:
    """How many rows a step left out, and where the first of them stand."""

    rows: int = 0
    places: list[Place] = field(default_factory=list)


@dataclass(slots=True)
class CleaningReport:
    """What the declared steps left out, in their order; a step that left out nothing is in it too."""

    steps: dict[Step, Removed] = field(default_factory=dict)

    def declare(self, step: Step) -> None:
        """A step is taken, whether it finds something or not."""
        self.steps.setdefault(step, Removed())

    def remove(self, step: Step, place: Place) -> None:
        """A step leaves a row out."""
        removed = self.steps.setdefault(step, Removed())
        removed.rows += 1
        if len(removed.places) < _NAMED_PLACES:
            removed.places.append(place)

    @property
    def rows(self) -> int:
        """How many rows all steps left out."""
        return sum(removed.rows for removed in self.steps.values())

    def figures(self) -> dict[str, float]:
        """The counts by names for a version's lineage, for example rows_removed_dedupe."""
        return {f"rows_removed_{step}": float(one.rows) for step, one in self.steps.items()}

    def lines(self) -> Iterator[str]:
        """What people should know of it."""
        for step, removed in self.steps.items():
            if removed.rows:
                named = "; ".join(map(str, removed.places))
                more = removed.rows - len(removed.places)
                rest = f"; and {more} more" if more else ""
                yield f"{step}: {removed.rows} rows left out, because {_WHY[step]} ({named}{rest})."


class Dedupe:
    """Lets a row pass that says something that no earlier one said."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def is_new(self, example: Example) -> bool:
        """Whether no earlier example said the same."""
        key = content_key(example.content)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True


def content_keys(examples: Iterable[Example]) -> set[bytes]:
    """The keys of all examples."""
    return {content_key(example.content) for example in examples}


def content_key(content: Content) -> bytes:
    """Equal for contents that say the same: white space and the ways to write a letter do not count."""
    parts: list[str] = []
    _collect(content, parts)
    text = "\0".join(parts)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES).digest()


def _collect(value: Any, parts: list[str]) -> None:
    if isinstance(value, str):
        parts.append(" ".join(value.split()))
    elif isinstance(value, dict):
        content = value.get("content")
        if len(value) == 2 and "role" in value and isinstance(content, str):  # Nearly all turns.
            parts.append(value["role"])
            parts.append(" ".join(content.split()))
        else:
            parts.append(json.dumps(value, sort_keys=True, default=str))
    elif isinstance(value, list | tuple):
        parts.append(str(len(value)))
        for one in value:
            _collect(one, parts)
    elif hasattr(value, "__slots__"):
        parts.append(type(value).__name__)
        for name in value.__slots__:
            _collect(getattr(value, name), parts)
    else:
        parts.append(repr(value))
