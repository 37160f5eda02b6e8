"""Prometheus metrics of the inference service. Nothing here is called per token.

Series by adapter and version are bounded (version_series.py); all other labels are from short lists.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from graft.errors import Reason
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.common.tracing import Tracing
from services.inference.domain import AdapterVersion, Base
from services.inference.rollout.metrics import RolloutMetrics
from services.inference.thrash import Thrash
from services.inference.version_series import LATENCY_S, VersionSeriesTable
from services.inference.version_series import VersionSeries as VersionSeries


class Tier(Enum):
    """Where an adapter version is kept, the nearest first."""

    GPU = "gpu"
    CPU = "cpu"
    DISK = "disk"


class Why(Enum):
    """Why a version left a tier."""

    ROOM = "room"
    RETIRED = "retired"
    ASKED = "asked"


@dataclass(frozen=True, slots=True)
class MetricsOptions:
    """See InferenceSettings."""

    max_versions: int = 128
    linger_s: float = 300.0
    thrash_window_s: float = 60.0


class InferenceMetrics:
    """Everything that this service counts.

    Args:
        registry: where it is shown.
        options: bounds and windows.
        tracing: what is timed as a stage, or waited for in a queue, is a span too.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        options: MetricsOptions | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        options = options or MetricsOptions()
        self.tracing = tracing or Tracing.off()
        self._versions = VersionSeriesTable(registry, options.max_versions, options.linger_s)
        self._thrash = Thrash(options.thrash_window_s)
        self.refusals = _counter(
            registry, "refusals", "Requests that the engine never saw", "reason"
        )
        self.queue_wait = _histogram(
            registry, "queue_wait_seconds", "From a request's arrival in the queue to its turn, by what "
            "it waited for last: nothing, capacity, slot or limit", "cause",
        )  # fmt: skip
        self._queued = _gauge(registry, "queue_waiting", "Requests that wait for their turn")
        self.watch_queue = self._queued.set_function
        self.queue_age = _gauge(
            registry, "queue_age_seconds", "How long the request that waits longest for its turn "
            "has waited",
        )  # fmt: skip
        self.in_flight_tokens = _gauge(
            registry, "in_flight_tokens", "Tokens of the requests on the engine: their prompts, and "
            "their answers as long as they are expected to be, or already are",
        )  # fmt: skip
        self.required_missing = _gauge(
            registry, "required_missing", "Required models that are not held yet"
        )
        self._stages = _histogram(
            registry,
            "swap_stage_seconds",
            "Time of a stage of bringing a version in or out",
            "stage",
        )
        self.swaps = _counter(
            registry, "swaps", "Wishes for a route: moved, unchanged or failed", "outcome"
        )
        self.swap_seconds = _histogram(
            registry, "swap_seconds", "From the registry's event to the moved route, or to the "
            "failure to move it", "outcome",
        )  # fmt: skip
        self.residency = _gauge(registry, "residency", "Versions on the engine", "state")
        self._tier_versions = _gauge(registry, "tier_versions", "Versions kept in a tier", "tier")
        self._tier_bytes = _gauge(registry, "tier_bytes", "Bytes of versions in a tier", "tier")
        self._slot_room = _gauge(
            registry,
            "slot_room",
            "Room of the engine's slots: pages where adapters share them, slots where they do not",
            "which",
        )
        self._evictions = _counter(
            registry, "evictions", "Versions that left a tier, and why", "tier", "why"
        )
        self._thrashed = _counter(
            registry,
            "thrash",
            "Versions brought back within the window after their eviction",
            "tier",
        )
        self.rollouts = RolloutMetrics(registry)
        self.engine_up = _gauge(registry, "engine_up", "1 while the engine can answer")
        self.engine_starts = _counter(
            registry, "engine_restarts", "Tries to start a dead engine anew", "outcome"
        )
        self.base_switches = _counter(
            registry,
            "base_switches",
            "Changes of the base, by how they went and ended",
            "strategy",
            "outcome",
        )
        self.slot_waiters = _gauge(registry, "slot_waiters", "Loads that wait for a slot")
        self._begin_at_zero()
        self.revision = _gauge(registry, "watch_revision", "Last registry revision acted upon")
        self.watch_lag = _gauge(
            registry, "watch_lag_seconds", "Age of the last event when it was acted upon; while the "
            "watch is broken, time since the registry was heard of last",
        )  # fmt: skip
        self.watch_connected = _gauge(
            registry, "watch_connected", "1 while the registry's events arrive"
        )

    def _begin_at_zero(self) -> None:
        """Prometheus sees the first of a kind as an increase only where it has seen none before."""
        for reason in (Reason.OVERLOADED, Reason.ENGINE_DEAD, Reason.INTERNAL):
            self.refusals.labels(reason.value)
        for outcome in ("moved", "unchanged", "failed"):
            self.swaps.labels(outcome)
        for outcome in ("started", "failed"):
            self.engine_starts.labels(outcome)
        for strategy in ("beside", "replace"):
            for outcome in ("done", "failed", "cancelled"):
                self.base_switches.labels(strategy, outcome)
        for cause in ("nothing", "capacity", "slot", "limit"):
            self.queue_wait.labels(cause)
        for tier in Tier:
            self._thrashed.labels(tier.value)
            for why in Why:
                self._evictions.labels(tier.value, why.value)

    def series(self, adapter: str, version: str) -> VersionSeries:
        """The series of a version; of the base with its id and an empty version."""
        return self._versions.series(adapter, version)

    def forget(self, adapter: str, version: str) -> None:
        """The version left the engine: its series go after a while."""
        self._versions.release(adapter, version)

    def refused(self, reason: Reason) -> None:
        """A request was refused before the engine saw it."""
        self.refusals.labels(reason.value).inc()

    def waited_turn(self, adapter: str, version: str, seconds: float) -> None:
        """A request waited so long for its turn among others, until now. Call it within the request."""
        self.series(adapter, version).fairness_wait.observe(seconds)
        self.tracing.passed("queue", seconds)

    def brought(self, version: AdapterVersion, tier: Tier = Tier.GPU) -> None:
        """A version came into a tier; soon after it was evicted there, that counts as thrash."""
        if self._thrash.brought(tier.value, version.name):
            self._thrashed.labels(tier.value).inc()
        if tier is Tier.GPU:
            self._versions.hold(version.adapter_id, version.label).loads.inc()

    def evicted(self, version: AdapterVersion, why: Why, tier: Tier = Tier.GPU) -> None:
        """A version left a tier."""
        self._evictions.labels(tier.value, why.value).inc()
        self._thrash.evicted(tier.value, version.name)

    def show_tier(self, tier: Tier, versions: int, size_bytes: int) -> None:
        """What a tier holds now."""
        self._tier_versions.labels(tier.value).set(versions)
        self._tier_bytes.labels(tier.value).set(size_bytes)

    def show_room(self, room: int, taken: int) -> None:
        """What there is on the engine's slots, and what the adapters there take of it."""
        self._slot_room.labels("all").set(room)
        self._slot_room.labels("taken").set(taken)

    def observe_stage(self, stage: str, seconds: float) -> None:
        """One stage took so long: resolve, fetch, blend, verify, load, switch, drain or unload."""
        self._stages.labels(stage).observe(seconds)

    @contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        """Times what is inside as a stage, with a span of its name."""
        began_s = time.perf_counter()
        try:
            with self.tracing.span(stage):
                yield
        finally:
            self.observe_stage(stage, time.perf_counter() - began_s)


def labels_of(base: Base, version: AdapterVersion | None) -> tuple[str, str]:
    """What the series of a version, or of the base alone, are called: adapter and version."""
    if version is None:
        return base.base_id, ""
    return version.adapter_id, version.label


def _counter(registry: CollectorRegistry, name: str, what: str, *labels: str) -> Counter:
    return Counter(f"graft_inference_{name}", what, labels, registry=registry)


def _gauge(registry: CollectorRegistry, name: str, what: str, *labels: str) -> Gauge:
    return Gauge(f"graft_inference_{name}", what, labels, registry=registry)


def _histogram(
    registry: CollectorRegistry,
    name: str,
    what: str,
    *labels: str,
    buckets: Sequence[float] = LATENCY_S,
) -> Histogram:
    return Histogram(f"graft_inference_{name}", what, labels, registry=registry, buckets=buckets)
