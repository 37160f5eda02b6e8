"""What a reward function is: it gives every written answer a number from 0 to 1, quickly and without fail.

An answer is whatever a model wrote, so no text may make one raise, hang or leave its bounds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote after a prompt: its text, and its tokens without the one that ends it."""

    text: str
    tokens: int


class Reward(ABC):
    """One reward function.

    Attributes:
        name: as the job spec calls it.
        needs_answer: whether it compares with the row's own answer, so that every row must have one.
    """

    name: ClassVar[str]
    needs_answer: ClassVar[bool] = False

    @abstractmethod
    def score(
        self, completions: Sequence[Completion], answers: Sequence[str | None]
    ) -> list[float]:
        """The reward of each completion, 0 to 1.

        Args:
            completions: what was written.
            answers: the answer of the row that each belongs to, None where it has none; as many.
        """


@dataclass(frozen=True, slots=True)
class WeightedReward:
    """A reward function and its weight in the sum; a negative one punishes."""

    reward: Reward
    weight: float
