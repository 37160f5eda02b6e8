"""Whether an answer begins as a refusal does, by patterns that operators wrote; none may hold up the service."""

from __future__ import annotations

from collections.abc import Sequence

import regex  # type: ignore[import-untyped]

from services.common.logs import get_logger

HEAD_CHARACTERS = 400
"""So much of an answer is looked at."""
_TIMEOUT_S = 0.005


class RefusalPatterns:
    """Some regular expressions; those that do not compile, or take too long once, are used no more.

    Args:
        patterns: as the registry has checked them.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self._patterns: list[regex.Pattern[str]] = []
        for pattern in patterns:
            try:
                self._patterns.append(regex.compile(pattern))
            except regex.error as error:
                get_logger().warning("pattern not used", pattern=pattern, error=str(error))

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def match(self, head: str) -> bool:
        """Whether an answer that begins so refuses."""
        for pattern in tuple(self._patterns):
            try:
                if pattern.match(head, timeout=_TIMEOUT_S):
                    return True
            except TimeoutError:
                self._patterns.remove(pattern)
                get_logger().warning(
                    "pattern not used any more: it takes too long", pattern=pattern.pattern
                )
        return False
