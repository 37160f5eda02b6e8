"""What Prometheus is told of a second engine."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

_NAME, _LABELS = "graft_inference_second_engine", ("engine",)


def second_metrics(
    engine: str, *, up: bool, adapters: int, in_flight: int, starts: int, deaths: int
) -> Iterable[Metric]:
    """The metrics of an engine of that name."""
    for name, what, value in (
        ("up", "1 while the second engine runs, which is while it is needed", int(up)),
        ("adapters", "Adapter versions on the second engine", adapters),
        ("in_flight", "Requests that the second engine works on", in_flight),
    ):
        gauge = GaugeMetricFamily(f"{_NAME}_{name}", what, labels=_LABELS)
        gauge.add_metric([engine], value)
        yield gauge
    for name, what, value in (
        ("starts", "How often the second engine was started", starts),
        ("deaths", "How often the second engine died while it was needed", deaths),
    ):
        counter = CounterMetricFamily(f"{_NAME}_{name}", what, labels=_LABELS)
        counter.add_metric([engine], value)
        yield counter
