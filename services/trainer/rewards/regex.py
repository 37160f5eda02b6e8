"""Rewards an answer that a regular expression matches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from services.trainer.rewards.base import Completion, Reward
from services.trainer.rewards.patterns import Pattern


class Regex(Reward):
    """1 when the pattern matches.

    Args:
        pattern: in RE2's syntax.
        whole: whether it must match the whole answer instead of a part.

    Raises:
        ValueError: the pattern is not one, in RE2's words.
    """

    name: ClassVar[str] = "regex"

    def __init__(self, pattern: str, whole: bool) -> None:
        compiled = Pattern(pattern)
        self._matches = compiled.is_all_of if whole else compiled.is_in

    def score(
        self, completions: Sequence[Completion], answers: Sequence[str | None]
    ) -> list[float]:
        return [float(self._matches(one.text)) for one in completions]
