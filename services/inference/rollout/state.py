"""What an endpoint knows of one alias with canaries or a shadow; and what a request got from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from graft.rollout_policy import Rollout, RolloutLimits

from services.inference.domain import AdapterVersion, AliasSeen
from services.inference.rollout.judge import Window
from services.inference.rollout.refusals import RefusalPatterns
from services.inference.rollout.shadow import ShadowTally


class Part(Enum):
    """A part of an alias with canaries."""

    NONE = auto()
    STABLE = auto()
    CANARY = auto()


@dataclass(frozen=True, slots=True)
class Routed:
    """What a reference means for one request; version None is the base.

    Attributes:
        alias: resource name of the alias that decided between parts; empty where there were none.
    """

    version: AdapterVersion | None
    alias: str = ""
    part: Part = Part.NONE


class CanaryState(Enum):
    """Where a canary is here; only one that serves gets requests."""

    LOADING = "loading"
    SERVING = "serving"
    FAILED = "failed"
    TAKEN_OUT = "taken_out"


@dataclass(slots=True)
class CanaryHere:
    """A canary on this endpoint; why says why it gets nothing."""

    number: int
    percent: float
    state: CanaryState = CanaryState.LOADING
    version: AdapterVersion | None = None
    why: str = ""


@dataclass(slots=True)
class Here:
    """One alias on this endpoint.

    Attributes:
        since_s: when its present state was seen; a step lasts from then on.
        canaries: by number, in the alias' order.
        windows: what was seen of each version, by number.
        patterns: of refusals, compiled.
        begun: whether its canaries are loaded already; others wait for their first request.
    """

    alias: AliasSeen
    since_s: float
    canaries: dict[int, CanaryHere] = field(default_factory=dict)
    windows: dict[int, Window] = field(default_factory=dict)
    patterns: RefusalPatterns = field(default_factory=RefusalPatterns)
    shadow: ShadowTally | None = None
    begun: bool = False

    @property
    def rollout(self) -> Rollout:
        """What is to happen; nothing where nothing was said."""
        return self.alias.rollout or Rollout()

    @property
    def limits(self) -> RolloutLimits | None:
        """What canaries are judged by."""
        return self.rollout.limits

    @property
    def name(self) -> str:
        """The alias' resource name."""
        return f"{self.alias.adapter}/aliases/{self.alias.alias}"

    def window(self, number: int) -> Window:
        """What was seen of a version."""
        return self.windows.setdefault(number, Window())

    def weights(self) -> list[tuple[int, float]]:
        """All canaries' parts, in the alias' order: who gets one, and who would."""
        return [(one.number, one.percent) for one in self.canaries.values()]
