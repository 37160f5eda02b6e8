"""Prometheus metrics of the HTTP door. What answers cost is counted where they are made, for both doors."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class HttpMetrics:
    """Requests by route and status, how long they took, and how many are being answered."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "graft_http_requests", "Requests answered", ["route", "code"], registry=registry
        )
        self.seconds = Histogram(
            "graft_http_request_duration_seconds",
            "Time from a request's head to its answer's last byte",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "graft_http_requests_in_flight", "Requests being answered", ["route"], registry=registry
        )
