"""When a worker that gives signs of life does not get on any more: the rule, for the trainer and for the worker."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Beat:
    """Where a worker stands, as its heartbeat says.

    Args:
        step: optimizer steps done.
        quiet_s: how long its step has taken by now; 0 outside of steps, which may take as long as it takes.
        longest_step_s: of this attempt's steps; 0 before two are done: the first one also warms up.
    """

    step: int = 0
    quiet_s: float = 0.0
    longest_step_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StallLimits:
    """How long a step may take.

    Args:
        factor: times the longest step of the attempt; 0: as long as it takes.
        least_s: but never less than that.
        first_s: while there is no such step: the first one compiles, reads ahead, and fills caches.
    """

    factor: float = 20.0
    least_s: float = 300.0
    first_s: float = 3600.0

    def allowed_s(self, beat: Beat) -> float:
        """How long the step may take that is worked on."""
        if not beat.longest_step_s:
            return max(self.first_s, self.least_s)
        return max(self.least_s, self.factor * beat.longest_step_s)

    def stalled(self, beat: Beat) -> str:
        """Why a worker does not get on, in words; "" where it may."""
        if not self.factor or beat.quiet_s <= self.allowed_s(beat):
            return ""
        usual = "none was done before"
        if beat.longest_step_s:
            usual = f"the longest before took {beat.longest_step_s:.3g} s"
        return f"step {beat.step + 1} has not ended in {beat.quiet_s:.3g} s although it gives signs of life ({usual})"
