"""Prometheus metrics of rollouts. Series by alias are bounded; all other labels are from short lists."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_MOST_ALIASES = 64
_OTHER = "other"
_RATIOS = (0.1, 0.25, 0.5, 0.8, 0.95, 1.05, 1.25, 2.0, 4.0, 10.0)


class Step(Enum):
    """What happens to a canary on an endpoint."""

    SEEN = "seen"
    LOADED = "loaded"
    NOT_LOADED = "not_loaded"
    TAKEN_OUT = "taken_out"
    TAKEN_BACK = "taken_back"
    RETRIED = "retried"
    ADVANCED = "advanced"
    ENDED = "ended"


class RolloutMetrics:
    """What is counted of rollouts.

    Args:
        registry: where it is shown.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "graft_inference_"
        self.steps = Counter(
            f"{prefix}rollout_steps",
            "What happened to canaries here: seen, loaded, not_loaded, taken_out (here, at once), "
            "taken_back (in the registry, by this endpoint), retried, advanced, ended",
            ("step",),
            registry=registry,
        )
        for step in Step:
            self.steps.labels(step.value)
        self._requests = Counter(
            f"{prefix}rollout_requests",
            "Requests for aliases with canaries, by the part that they got",
            ("adapter", "alias", "part"),
            registry=registry,
        )
        self._canaries = Gauge(
            f"{prefix}rollout_canaries",
            "Canaries by where they are: loading, serving, failed, taken_out",
            ("state",),
            registry=registry,
        )
        self.shadows = Counter(
            f"{prefix}shadow_copies",
            "Copies of requests: equal, different, failed or dropped",
            ("outcome",),
            registry=registry,
        )
        for outcome in ("equal", "different", "failed", "dropped"):
            self.shadows.labels(outcome)
        self.shadow_agreement = Histogram(
            f"{prefix}shadow_agreement",
            "Share of positions at which a copy's answer has the real one's token",
            buckets=(0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0),
            registry=registry,
        )
        self.shadow_length_ratio = Histogram(
            f"{prefix}shadow_length_ratio",
            "Length of a copy's answer as a multiple of the real one's",
            buckets=_RATIOS,
            registry=registry,
        )
        self.shadow_time_ratio = Histogram(
            f"{prefix}shadow_time_ratio",
            "Time for a copy's answer as a multiple of the real one's",
            buckets=_RATIOS,
            registry=registry,
        )
        self._aliases: set[tuple[str, str]] = set()

    def step(self, step: Step) -> None:
        """It happened."""
        self.steps.labels(step.value).inc()

    def decided(self, adapter: str, alias: str, *, canary: bool) -> None:
        """A request got its part."""
        key = adapter, alias
        if key not in self._aliases:
            if len(self._aliases) >= _MOST_ALIASES:
                key = _OTHER, _OTHER
            else:
                self._aliases.add(key)
                for part in ("canary", "stable"):
                    self._requests.labels(*key, part)
        self._requests.labels(*key, "canary" if canary else "stable").inc()

    def show(self, states: Iterable[str]) -> None:
        """Where the canaries are now."""
        counts = dict.fromkeys(("loading", "serving", "failed", "taken_out"), 0)
        for state in states:
            counts[state] += 1
        for state, count in counts.items():
            self._canaries.labels(state).set(count)

    def forget(self, adapter: str, alias: str) -> None:
        """Its rollout is over: its series go."""
        if (adapter, alias) in self._aliases:
            self._aliases.discard((adapter, alias))
            for part in ("canary", "stable"):
                self._requests.remove(adapter, alias, part)
