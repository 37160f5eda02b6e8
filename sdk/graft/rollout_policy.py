"""How canaries are rolled out and judged, as plain values: what the registry keeps with an alias, and what
the endpoints act by. Conversion to and from protobuf is in rollout_messages."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_MIN_REQUESTS = 20


@dataclass(frozen=True, slots=True)
class RolloutLimits:
    """When a canary is taken back; see RolloutLimits of the contract. None is not judged."""

    window_s: float
    min_requests: int = DEFAULT_MIN_REQUESTS
    max_error_rate: float | None = None
    max_first_token_s: float | None = None
    max_first_token_ratio: float | None = None
    max_token_s: float | None = None
    max_token_ratio: float | None = None
    max_refusal_rate: float | None = None
    refusal_patterns: tuple[str, ...] = ()
    max_babble_rate: float | None = None
    max_length_ratio: float | None = None


RATES = ("max_error_rate", "max_refusal_rate", "max_babble_rate")
SECONDS = ("max_first_token_s", "max_token_s")
RATIOS = ("max_first_token_ratio", "max_token_ratio", "max_length_ratio")
LIMITS = RATES + SECONDS + RATIOS
"""Fields of RolloutLimits that each may be passed."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """What answers copies of the requests: a version's number, and the part in percent."""

    version: int
    percent: float


@dataclass(frozen=True, slots=True)
class Rollout:
    """How an alias' canaries are rolled out; limits of None judge nothing."""

    limits: RolloutLimits | None = None
    steps_percent: tuple[float, ...] = ()
    paused: bool = False
    shadow: Shadow | None = None

    def next_percent(self, weight_percent: float) -> float | None:
        """The weight after this one; None where there is none."""
        return next((step for step in self.steps_percent if step > weight_percent), None)


@dataclass(frozen=True, slots=True)
class RolloutReport:
    """Why a canary was taken back; see RolloutReport of the contract. version is its number."""

    version: int
    limit: str
    observed: float
    allowed: float
    stable: float | None
    requests: int
    window_s: float
    detail: str
