"""vLLM's Prometheus metrics without the one that grows without bound. Imported only with vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY
from vllm.v1.metrics.loggers import PrometheusStatLogger

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class BoundedStatLogger(PrometheusStatLogger):  # type: ignore[misc]
    """Leaves out vllm:lora_requests_info.

    Its labels are the lists of adapters that run and wait: every combination that ever was is a series
    of its own and stays for ever. What it tells is in the service's metrics by adapter and version.
    """

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int] | None = None) -> None:
        super().__init__(vllm_config, engine_indexes)
        # None where no adapters are served.
        unbounded: Any = getattr(self, "gauge_lora_info")  # noqa: B009
        if unbounded is not None:
            REGISTRY.unregister(unbounded)
            self.gauge_lora_info: Any = None
