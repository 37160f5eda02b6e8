"""vLLM's CPU worker, with the one thing that it forgets: asking the kernel for AMX before using it.

Linux lets a process use AMX tiles only after it asked (arch_prctl ARCH_REQ_XCOMP_PERM). vLLM's bfloat16
attention does not ask, and a worker in which no other library has done so by chance dies of SIGILL.
"""

from __future__ import annotations

import torch
from vllm.v1.worker.cpu_worker import CPUWorker


class GraftCpuWorker(CPUWorker):  # type: ignore[misc]
    """Named to the engine as worker_cls; made by vLLM in its own process."""

    def init_device(self) -> None:
        """As of the base class."""
        if torch.cpu._is_amx_tile_supported():
            torch.cpu._init_amx()
        super().init_device()
