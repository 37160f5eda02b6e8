"""How the queue says no: each refusal with a reason, a next step and, where it helps, when to come back."""

from __future__ import annotations

from graft.errors import GraftError, Reason

# What is suggested where nothing was measured yet, and its bounds: soon, and within a minute.
_UNKNOWN_S = 1.0
_LEAST_S, _MOST_S = 0.1, 60.0


def queue_full(who: str, waiting: int, wait_s: float | None) -> GraftError:
    """OVERLOADED: too many wait; wait_s is how long the queue takes to move on."""
    return GraftError(
        Reason.OVERLOADED,
        f"{waiting} requests wait for {who} already",
        next_step="Try again after retry_after_s, or add replicas.",
        retry_after_s=_delay(wait_s),
    )


def no_slot(who: str, waited_s: float) -> GraftError:
    """OVERLOADED: requests on the slots did not end."""
    return GraftError(
        Reason.OVERLOADED,
        f"No adapter slot became free for {who} within {waited_s:g} s",
        next_step="Try again later, add replicas, or raise GRAFT_INFERENCE_MAX_ADAPTERS.",
        retry_after_s=_delay(waited_s),
    )


def rate_limited(who: str, wait_s: float) -> GraftError:
    """RATE_LIMITED: its token rate is used up for longer than is waited."""
    return GraftError(
        Reason.RATE_LIMITED,
        f"{who} has used up its tokens per second for the next {wait_s:.1f} s",
        next_step="Try again after retry_after_s, or ask the operator for a higher limit.",
        retry_after_s=max(_LEAST_S, round(wait_s, 3)),
    )


def too_late(who: str, left_s: float, wait_s: float) -> GraftError:
    """DEADLINE_EXCEEDED, at once: it would expire in the queue."""
    return GraftError(
        Reason.DEADLINE_EXCEEDED,
        f"The deadline is in {left_s:.1f} s, and a request for {who} waits about {wait_s:.1f} s",
        next_step="Allow more time, or try again after retry_after_s.",
        retry_after_s=_delay(wait_s),
    )


def expired(who: str, waited_s: float) -> GraftError:
    """DEADLINE_EXCEEDED: it expired in the queue, and the engine has not seen it."""
    return GraftError(
        Reason.DEADLINE_EXCEEDED,
        f"The deadline passed while the request waited {waited_s:.1f} s for {who}",
        next_step="Allow more time, or try again when there is less load.",
    )


def _delay(wait_s: float | None) -> float:
    return round(min(_MOST_S, max(_LEAST_S, _UNKNOWN_S if wait_s is None else wait_s)), 3)
