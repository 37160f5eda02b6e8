"""Rewards an answer whose length lies within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from services.trainer.rewards.base import Completion, Reward


class Length(Reward):
    """1 within the bounds; outside, the ratio to the bound that is missed, so that nearer is better.

    Args:
        min_tokens: fewest tokens; 0 for no bound.
        max_tokens: most tokens; 0 for no bound.
    """

    name: ClassVar[str] = "length"

    def __init__(self, min_tokens: int, max_tokens: int) -> None:
        self.min_tokens = min_tokens
        self.max_tokens = max_tokens

    def score(
        self, completions: Sequence[Completion], answers: Sequence[str | None]
    ) -> list[float]:
        return [self._one(one.tokens) for one in completions]

    def _one(self, tokens: int) -> float:
        if tokens < self.min_tokens:
            return tokens / self.min_tokens
        if self.max_tokens and tokens > self.max_tokens:
            return self.max_tokens / tokens
        return 1.0
