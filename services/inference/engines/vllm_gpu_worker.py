"""vLLM's GPU worker, with scales: DoRA and IA3 beside plain LoRA (docs/served-kinds.md)."""

from __future__ import annotations

from vllm.v1.worker.gpu_worker import Worker

from services.inference.engines.orphans import end_with_ancestors
from services.inference.vllm_plugin import scales_entry


class GraftGpuWorker(Worker):  # type: ignore[misc]
    """Named to the engine as worker_cls; made by vLLM in its own process, one for each GPU."""

    def init_device(self) -> None:
        """As of the base class."""
        # Several have processes of their own, below the core's; when they end, so does the core.
        end_with_ancestors(1 if self.parallel_config.world_size == 1 else 2)
        scales_entry.install()
        super().init_device()
