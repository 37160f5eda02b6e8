"""Shows what an engine says of itself at the service's own endpoint, beside the service's metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.inference.engines.base import Engine


class EngineCollector(Collector):
    """Asks the engine at each scrape: after a restart it is another's metrics.

    Args:
        engine: the one that serves now; None where none does yet.
    """

    def __init__(self, engine: Callable[[], Engine | None], registry: CollectorRegistry) -> None:
        self._engine = engine
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """The engine's metrics as they are now."""
        engine = self._engine()
        return () if engine is None else engine.metrics()

    def describe(self) -> Iterable[Metric]:
        """Unknown before the engine has started."""
        return ()
