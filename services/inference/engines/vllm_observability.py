"""vLLM's own metrics: how they are turned on, and where they come out.

vLLM counts into prometheus_client's registry of the process, for one engine at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric

_PREFIX = "vllm:"


def stat_loggers(metrics: bool) -> list[Any] | None:
    """What vLLM is given to count with: its Prometheus metrics alone, without its log lines."""
    if not metrics:
        return None
    from services.inference.engines.vllm_stat_logger import BoundedStatLogger

    return [BoundedStatLogger]


def vllm_metrics() -> Iterable[Metric]:
    """All that vLLM counts in this process, as it is now."""
    return (metric for metric in REGISTRY.collect() if metric.name.startswith(_PREFIX))
