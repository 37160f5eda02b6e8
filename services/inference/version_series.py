"""Prometheus series by adapter and version, and the bound on how many there are.

A version has series of its own while it is on the engine and for a while after it, so that the last
scrape sees its last counts. Beyond the bound, versions share the series of "other". Which requests
there are, and what is loaded when, is none of its business.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

OTHER = "other"
LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_OUTCOMES = ("ok", "cancelled", "error")
_LABELS = ("adapter", "version")
_PREFIX = "graft_inference_"


@dataclass(frozen=True, slots=True)
class VersionSeries:
    """The series of one version, looked up once for a request."""

    outcomes: dict[str, Counter]
    first_token: Histogram
    per_token: Histogram
    longest_gap: Histogram
    queue: Histogram
    fairness_wait: Histogram
    prompt_tokens: Counter
    completion_tokens: Counter
    in_flight: Gauge
    loads: Counter


@dataclass(slots=True)
class _Entry:
    series: VersionSeries
    used_s: float


class VersionSeriesTable(Collector):
    """Hands out the series of versions, at most so many, and removes those that nobody needs.

    Args:
        registry: where the metrics are shown; what is due is removed at each scrape.
        most: versions with series of their own, the base not counted; the others share "other".
        linger_s: how long a version's series stay after it has left the engine.
        clock: for tests.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        most: int,
        linger_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._linger_s, self._clock = most, linger_s, clock
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._resident: set[tuple[str, str]] = set()
        # A scrape comes in a thread of its own.
        self._lock = threading.Lock()
        # Before the metrics themselves: a scrape asks in this order, and shows nothing that is due.
        registry.register(self)
        self._metrics = _Metrics(registry)
        self._other: VersionSeries | None = None
        self._bases: dict[str, VersionSeries] = {}

    def base(self, base_id: str) -> VersionSeries:
        """The series of the base alone: its id and an empty version; never removed."""
        found = self._bases.get(base_id)
        if found is None:
            found = self._bases[base_id] = self._metrics.make(base_id, "")
        return found

    def series(self, adapter: str, version: str) -> VersionSeries:
        """The series of a version, or those of "other" when there are as many as may be."""
        if not version:
            return self.base(adapter)
        with self._lock:
            entry = self._find(adapter, version)
            return self._shared() if entry is None else entry.series

    def hold(self, adapter: str, version: str) -> VersionSeries:
        """The version is on the engine: its series stay until release()."""
        with self._lock:
            self._resident.add((adapter, version))
            entry = self._find(adapter, version)
            return self._shared() if entry is None else entry.series

    def release(self, adapter: str, version: str) -> None:
        """The version left the engine; its series go when they were not used for a while."""
        with self._lock:
            self._resident.discard((adapter, version))
            entry = self._entries.get((adapter, version))
            if entry is not None:
                entry.used_s = self._clock()

    def collect(self) -> Iterable[Metric]:
        """No metrics of its own: a scrape removes what is due."""
        with self._lock:
            self._sweep()
        return ()

    def describe(self) -> Iterable[Metric]:
        """No metrics of its own."""
        return ()

    def _find(self, adapter: str, version: str) -> _Entry | None:
        key = adapter, version
        entry = self._entries.get(key)
        if entry is not None:
            entry.used_s = self._clock()
            return entry
        if not self._has_room():
            return None
        entry = _Entry(self._metrics.make(*key), self._clock())
        self._entries[key] = entry
        return entry

    def _has_room(self) -> bool:
        if len(self._entries) < self._most:
            return True
        self._sweep()
        if len(self._entries) < self._most:
            return True
        # Whoever has left longest ago gives its place. What is resident may have requests in flight.
        gone = self._gone()
        if gone:
            self._remove(min(gone)[1])
        return bool(gone)

    def _gone(self) -> list[tuple[float, tuple[str, str]]]:
        return [
            (entry.used_s, key) for key, entry in self._entries.items() if key not in self._resident
        ]

    def _sweep(self) -> None:
        due_s = self._clock() - self._linger_s
        for used_s, key in self._gone():
            if used_s <= due_s:
                self._remove(key)

    def _remove(self, key: tuple[str, str]) -> None:
        del self._entries[key]
        self._metrics.remove(*key)

    def _shared(self) -> VersionSeries:
        if self._other is None:
            self._other = self._metrics.make(OTHER, OTHER)
        return self._other


class _Metrics:
    """What is counted for each version by itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            f"{_PREFIX}requests",
            "Requests that reached the engine",
            (*_LABELS, "outcome"),
            registry=registry,
        )

        def histogram(name: str, what: str, buckets: tuple[float, ...] = LATENCY_S) -> Histogram:
            return Histogram(_PREFIX + name, what, _LABELS, registry=registry, buckets=buckets)

        def counter(name: str, what: str) -> Counter:
            return Counter(_PREFIX + name, what, _LABELS, registry=registry)

        self._first_token = histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token"
        )
        self._per_token = histogram(
            "time_per_output_token_seconds", "Mean time between the tokens of a request", _TOKEN_S
        )
        self._longest_gap = histogram(
            "longest_token_gap_seconds", "Longest pause within a stream of tokens"
        )
        self._queue = histogram(
            "queue_seconds", "From a request's arrival to its handing over to the engine"
        )
        self._fairness_wait = histogram(
            "fairness_wait_seconds", "How long a request waited for its turn among others"
        )
        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts")
        self._completion_tokens = counter("completion_tokens", "Tokens of answers")
        self._loads = counter("loads", "Loads onto the engine")
        self._in_flight = Gauge(
            f"{_PREFIX}in_flight", "Requests on the engine", _LABELS, registry=registry
        )

    def make(self, adapter: str, version: str) -> VersionSeries:
        key = adapter, version
        return VersionSeries(
            {outcome: self._requests.labels(*key, outcome) for outcome in _OUTCOMES},
            self._first_token.labels(*key),
            self._per_token.labels(*key),
            self._longest_gap.labels(*key),
            self._queue.labels(*key),
            self._fairness_wait.labels(*key),
            self._prompt_tokens.labels(*key),
            self._completion_tokens.labels(*key),
            self._in_flight.labels(*key),
            self._loads.labels(*key),
        )

    def remove(self, adapter: str, version: str) -> None:
        for outcome in _OUTCOMES:
            self._requests.remove(adapter, version, outcome)
        for metric in (
            self._first_token,
            self._per_token,
            self._longest_gap,
            self._queue,
            self._fairness_wait,
            self._prompt_tokens,
            self._completion_tokens,
            self._in_flight,
            self._loads,
        ):
            metric.remove(adapter, version)
