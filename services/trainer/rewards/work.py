"""Counts the work of one decision about a JSON value, and ends it when it becomes too much."""

from __future__ import annotations

from typing import Any

# A unit is about 10 microseconds, so no decision takes longer than some seconds.
_MOST_UNITS = 200_000
_CHARACTERS_PER_UNIT = 64
_STEPS_PER_UNIT = 2_000
_NUMBER_CHARACTERS = 24


class TooMuchWorkError(Exception):
    """A decision has used up its work."""


class Work:
    """The work of one decision at a time.

    Args:
        schema: what decides; its keywords' values are measured by their size.
    """

    def __init__(self, schema: Any) -> None:
        self._schema_sizes: dict[int, int] = {}
        _measure(schema, self._schema_sizes)
        self._sizes: dict[int, int] = {}
        self._left = 0

    def begin(self, value: Any) -> None:
        """Begins the decision about a value."""
        self._sizes = {}
        _measure(value, self._sizes)
        self._left = _MOST_UNITS

    def spend_on(self, keyword_value: Any, instance: Any) -> None:
        """Counts one keyword asked about one part of the value.

        Raises:
            TooMuchWorkError.
        """
        size = self._schema_sizes.get(id(keyword_value), 0) + self._size(instance)
        self._spend(1 + size // _CHARACTERS_PER_UNIT)

    def spend_steps(self, steps: int) -> None:
        """Counts a pattern's match.

        Raises:
            TooMuchWorkError.
        """
        self._spend(1 + steps // _STEPS_PER_UNIT)

    def _size(self, instance: Any) -> int:
        return len(instance) if isinstance(instance, str) else self._sizes.get(id(instance), 0)

    def _spend(self, units: int) -> None:
        self._left -= units
        if self._left < 0:
            raise TooMuchWorkError


def _measure(value: Any, sizes: dict[int, int]) -> int:
    """About how many characters a value has as text; notes it for every list and object within."""
    if isinstance(value, str):
        return len(value) + 2
    if isinstance(value, list | dict):
        parts = value if isinstance(value, list) else [*value, *value.values()]
        size = 2 + sum(_measure(part, sizes) for part in parts)
        sizes[id(value)] = size
        return size
    if isinstance(value, int):
        return 1 + value.bit_length() // 3
    return _NUMBER_CHARACTERS
