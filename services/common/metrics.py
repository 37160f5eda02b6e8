"""Prometheus metrics that every service has, and the HTTP endpoint that shows them."""

from __future__ import annotations

from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.process_collector import ProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class RpcMetrics:
    """Calls by method and status, their duration, and how many are being answered."""

    def __init__(self, registry: CollectorRegistry) -> None:
        ProcessCollector(registry=registry)
        self.calls = Counter(
            "graft_rpc_calls", "Calls answered", ["method", "code"], registry=registry
        )
        self.seconds = Histogram(
            "graft_rpc_duration_seconds",
            "Time from a call's arrival to its last byte",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "graft_rpc_in_flight", "Calls being answered", ["method"], registry=registry
        )


class MetricsEndpoint:
    """Serves a registry at /metrics until it is closed."""

    def __init__(self, listen: str, registry: CollectorRegistry) -> None:
        host, _, port = listen.rpartition(":")
        self._server: WSGIServer
        self._server, self._thread = start_http_server(int(port), host, registry)
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Stops serving and frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
