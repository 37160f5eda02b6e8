"""Prometheus metrics of the inference service. Nothing here is called per token.

Series carry adapter and version, and go when the version leaves the engine, so that their number is
bounded by the engine's slots and not by time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_OUTCOMES = ("ok", "cancelled", "error")
_LABELS = ("adapter", "version")


@dataclass(frozen=True, slots=True)
class VersionSeries:
    """The series of one version, looked up once."""

    outcomes: dict[str, Counter]
    first_token: Histogram
    per_token: Histogram
    prompt_tokens: Counter
    completion_tokens: Counter
    in_flight: Gauge


class InferenceMetrics:
    """Everything that this service counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._versions = _Versions(registry)
        self.series, self.forget = self._versions.series, self._versions.forget
        self.refusals = _counter(
            registry, "refusals", "Requests that the engine never saw", "reason"
        )
        self.queue_wait = _histogram(
            registry, "queue_wait_seconds", "From a request's arrival in the queue to its turn, by what "
            "it waited for last: nothing, capacity, slot or limit", "cause",
        )  # fmt: skip
        self._queued = _gauge(registry, "queue_waiting", "Requests that wait for their turn")
        self.watch_queue = self._queued.set_function
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
        self.slot_waiters = _gauge(registry, "slot_waiters", "Loads that wait for a slot")
        self.revision = _gauge(registry, "watch_revision", "Last registry revision acted upon")
        self.watch_lag = _gauge(
            registry, "watch_lag_seconds", "Age of the last event when it was acted upon; while the "
            "watch is broken, time since the registry was heard of last",
        )  # fmt: skip
        self.watch_connected = _gauge(
            registry, "watch_connected", "1 while the registry's events arrive"
        )

    def observe_stage(self, stage: str, seconds: float) -> None:
        """One stage took so long: resolve, fetch, verify, load, switch, drain or unload."""
        self._stages.labels(stage).observe(seconds)

    @contextmanager
    def stage(self, stage: str) -> Iterator[None]:
        """Times what is inside as a stage."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            self.observe_stage(stage, time.perf_counter() - began_s)


class _Versions:
    """What is counted for each version by itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = _counter(
            registry, "requests", "Requests that reached the engine", *_LABELS, "outcome"
        )
        self._first_token = _histogram(
            registry, "time_to_first_token_seconds", "From a request's arrival to its first token",
            *_LABELS,
        )  # fmt: skip
        self._per_token = _histogram(
            registry, "time_per_output_token_seconds", "Mean time between the tokens of a request",
            *_LABELS, buckets=_TOKEN,
        )  # fmt: skip
        self._prompt_tokens = _counter(registry, "prompt_tokens", "Tokens of prompts", *_LABELS)
        self._completion_tokens = _counter(
            registry, "completion_tokens", "Tokens of answers", *_LABELS
        )
        self._in_flight = _gauge(registry, "in_flight", "Requests on the engine", *_LABELS)
        self._series: dict[tuple[str, str], VersionSeries] = {}

    def series(self, adapter: str, version: str) -> VersionSeries:
        """The series of a version; of the base with its id and an empty version."""
        key = adapter, version
        found = self._series.get(key)
        if found is None:
            found = self._series[key] = VersionSeries(
                {outcome: self._requests.labels(*key, outcome) for outcome in _OUTCOMES},
                self._first_token.labels(*key),
                self._per_token.labels(*key),
                self._prompt_tokens.labels(*key),
                self._completion_tokens.labels(*key),
                self._in_flight.labels(*key),
            )
        return found

    def forget(self, adapter: str, version: str) -> None:
        """Removes the series of a version that left the engine."""
        if self._series.pop((adapter, version), None) is None:
            return
        for outcome in _OUTCOMES:
            self._requests.remove(adapter, version, outcome)
        for metric in (
            self._first_token,
            self._per_token,
            self._prompt_tokens,
            self._completion_tokens,
            self._in_flight,
        ):
            metric.remove(adapter, version)


def _counter(registry: CollectorRegistry, name: str, what: str, *labels: str) -> Counter:
    return Counter(f"graft_inference_{name}", what, labels, registry=registry)


def _gauge(registry: CollectorRegistry, name: str, what: str, *labels: str) -> Gauge:
    return Gauge(f"graft_inference_{name}", what, labels, registry=registry)


def _histogram(
    registry: CollectorRegistry,
    name: str,
    what: str,
    *labels: str,
    buckets: Sequence[float] = _LATENCY,
) -> Histogram:
    return Histogram(f"graft_inference_{name}", what, labels, registry=registry, buckets=buckets)
