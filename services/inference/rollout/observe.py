"""What is seen of one answer: when it began, how long it is, how it ended. Cheap: it is called per delta."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from enum import Enum

from services.inference.engines.base import Delta, Finish
from services.inference.rollout.babble import TAIL_TOKENS, repeats
from services.inference.rollout.refusals import HEAD_CHARACTERS, RefusalPatterns

_LOOK_EVERY_TOKENS = 64


class End(Enum):
    """How a request ended; CANCELLED by its caller says nothing about the version but its times."""

    ANSWERED = "answered"
    FAILED = "failed"
    REFUSED = "refused"
    CANCELLED = "cancelled"


class Observation:
    """One request on one version, from when the engine has it.

    Args:
        max_tokens: that it may have; 0 for unknown.
        streamed: whether its tokens come one by one.
        refusals: what beginnings of answers refuse.
    """

    __slots__ = (
        "_head",
        "_looked",
        "_refusals",
        "_tail",
        "began_s",
        "clock",
        "cut",
        "end",
        "ended_s",
        "first_s",
        "max_tokens",
        "refused",
        "repeats",
        "streamed",
        "tokens",
    )  # fmt: skip

    def __init__(
        self,
        max_tokens: int,
        refusals: RefusalPatterns | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock, self.max_tokens, self._refusals = clock, max_tokens, refusals
        self.began_s, self.first_s, self.ended_s = clock(), 0.0, 0.0
        self.end: End | None = None
        self.streamed = self.cut = self.repeats = self.refused = False
        self.tokens, self._looked, self._head = 0, 0, ""
        self._tail: deque[int] = deque(maxlen=TAIL_TOKENS)

    def start(self, *, streamed: bool, max_tokens: int) -> None:
        """The engine has it now."""
        self.began_s, self.streamed, self.max_tokens = self.clock(), streamed, max_tokens

    def count(self, delta: Delta) -> None:
        """New tokens came."""
        if not self.first_s:
            self.first_s = self.clock()
        self.tokens += len(delta.token_ids)
        self._tail.extend(delta.token_ids)
        if self._refusals and len(self._head) < HEAD_CHARACTERS:
            self._head += delta.text
        if delta.finish is Finish.LENGTH:
            self.cut = True
        elif delta.finish is Finish.ABORTED:
            self.end = End.FAILED
        if self.tokens - self._looked >= _LOOK_EVERY_TOKENS:
            self._looked = self.tokens
            self.repeats = repeats(self._tail)

    def finish(self, end: End) -> None:
        """It is over; what is not needed any more is let go."""
        self.ended_s = self.clock()
        self.end = self.end or end
        if self.end is End.ANSWERED:
            self.repeats = self.repeats or repeats(self._tail)
            if self._refusals:
                self.refused = self._refusals.match(self._head[:HEAD_CHARACTERS].lstrip())
        self._tail.clear()
        self._head, self._refusals = "", None

    @property
    def babbles(self) -> bool:
        """Whether it runs into its end, or in circles."""
        return self.cut or self.repeats

    def first_token_s(self, now_s: float) -> float | None:
        """Seconds until its first token, or so far; None where nobody sees it come."""
        if not self.streamed:
            return None
        return (self.first_s or self.ended_s or now_s) - self.began_s

    def token_s(self, now_s: float) -> float | None:
        """Seconds between its tokens, at least; None where nothing is known."""
        until_s = self.ended_s or now_s
        if not self.streamed:
            # While it runs nobody knows how far it is: not further than its end.
            tokens = self.tokens if self.ended_s else self.max_tokens
            return (until_s - self.began_s) / tokens if tokens else None
        if not self.first_s:
            return None
        # A part may bring many tokens at once.
        steps = self.tokens - 1 if self.ended_s else self.tokens
        return (until_s - self.first_s) / steps if steps > 0 else None
