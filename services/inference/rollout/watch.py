"""What follows one request on its way: for the judge, and for a copy. Its owner ends it exactly once."""

from __future__ import annotations

from collections.abc import Callable

from graft.errors import GraftError, Reason

from services.inference.engines.base import Delta, Sampling
from services.inference.prompts import Prompt
from services.inference.rollout.judge import Window
from services.inference.rollout.observe import End, Observation
from services.inference.rollout.shadow import Copy

# Ours, and not the engine's. The stable version's share of them is allowed to a canary, too: what a caller
# does wrong takes nobody back.
_REFUSALS = frozenset(
    {Reason.INVALID_REQUEST, Reason.PROMPT_TOO_LONG, Reason.OVERLOADED, Reason.RATE_LIMITED}
)


class Watch:
    """One request.

    Args:
        observation: None where nobody judges.
        window: that the observation is in.
        copy: None where it is not shadowed.
        offer: takes the copy when the answer is complete.
    """

    __slots__ = ("_copy", "_observation", "_offer", "_window")

    def __init__(
        self,
        observation: Observation | None,
        window: Window | None,
        copy: Copy | None,
        offer: Callable[[Copy], None],
    ) -> None:
        self._observation, self._window = observation, window
        self._copy, self._offer = copy, offer

    def start(self, prompt: Prompt, sampling: Sampling, *, streamed: bool) -> None:
        """The engine has it now."""
        if self._observation is not None:
            self._observation.start(streamed=streamed, max_tokens=sampling.max_tokens)
        if self._copy is not None:
            self._copy.start(prompt, sampling)

    def count(self, delta: Delta) -> None:
        """New tokens came."""
        if self._observation is not None:
            self._observation.count(delta)
        if self._copy is not None:
            self._copy.count(delta)

    def end(self, outcome: str) -> None:
        """It is over: "ok", "cancelled" or "error"."""
        ends = {"ok": End.ANSWERED, "cancelled": End.CANCELLED}
        self._leave(ends.get(outcome, End.FAILED))
        if self._copy is not None and outcome == "ok":
            self._copy.end()
            self._offer(self._copy)

    def fail(self, error: BaseException) -> None:
        """It ended with an error, before the engine had it or after."""
        if not isinstance(error, GraftError):
            self._leave(End.FAILED if isinstance(error, Exception) else End.CANCELLED)
        elif error.reason in (Reason.CANCELLED, Reason.DEADLINE_EXCEEDED):
            self._leave(End.CANCELLED)
        else:
            self._leave(End.REFUSED if error.reason in _REFUSALS else End.FAILED)

    def _leave(self, end: End) -> None:
        if self._observation is not None and self._window is not None:
            self._window.leave(self._observation, end)
