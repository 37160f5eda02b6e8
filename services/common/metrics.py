"""Prometheus metrics that every service has, and the HTTP endpoint that shows them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from threading import Thread
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app
from prometheus_client.process_collector import ProcessCollector

# How long closing the endpoint may take.
_POLL_S = 0.05
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


class CertificateMetrics:
    """Until when the service's certificate is valid; ends is asked at every scrape."""

    def __init__(self, registry: CollectorRegistry, ends: Callable[[], datetime | None]) -> None:
        def seconds() -> float:
            end = ends()
            return end.timestamp() if end is not None else 0.0

        Gauge(
            "graft_tls_certificate_expiry_timestamp_seconds",
            "When the service's certificate expires, in seconds since 1970",
            registry=registry,
        ).set_function(seconds)


class MetricsEndpoint:
    """Serves a registry at /metrics until it is closed."""

    def __init__(self, listen: str, registry: CollectorRegistry) -> None:
        host, _, port = listen.rpartition(":")
        app = make_wsgi_app(registry)
        self._server = make_server(host, int(port), app, ThreadingWSGIServer, _SilentHandler)
        self._thread = Thread(target=self._server.serve_forever, args=(_POLL_S,), daemon=True)
        self._thread.start()
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Stops serving and frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _SilentHandler(WSGIRequestHandler):
    """Writes no line per scrape."""

    def log_message(self, format: str, *args: object) -> None:
        return None
