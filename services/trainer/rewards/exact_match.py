"""Rewards an answer that is the row's answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from services.trainer.rewards.base import Completion, Reward


class ExactMatch(Reward):
    """1 when the texts are the same but for white space around them.

    Args:
        ignore_case: whether upper and lower case are the same (Unicode's case folding).
    """

    name: ClassVar[str] = "exact_match"
    needs_answer: ClassVar[bool] = True

    def __init__(self, ignore_case: bool) -> None:
        self._ignore_case = ignore_case

    def score(
        self, completions: Sequence[Completion], answers: Sequence[str | None]
    ) -> list[float]:
        return [
            float(answer is not None and self._plain(one.text) == self._plain(answer))
            for one, answer in zip(completions, answers, strict=True)
        ]

    def _plain(self, text: str) -> str:
        return text.strip().casefold() if self._ignore_case else text.strip()
