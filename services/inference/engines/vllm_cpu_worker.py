"""vLLM's CPU worker, with two things that it forgets: to ask for AMX, and to clean the KV cache.

Linux lets a process use AMX tiles only after it asked (arch_prctl ARCH_REQ_XCOMP_PERM). vLLM's bfloat16
attention does not ask, and a worker in which no other library has done so by chance dies of SIGILL.
A GPU engine never sees this class; where the CPU has no AMX, it does nothing; where the kernel
refuses, the service goes on to what vLLM does then, and its log has the reason beforehand.

The CPU's attention multiplies what lies behind a request's last token by 0, and 0 times NaN is NaN: a
block that an overflowing request has left makes the answer of the next one wrong, whoever it is.
"""

from __future__ import annotations

import torch
from vllm.logger import init_logger
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.cpu_worker import CPUWorker


class GraftCpuWorker(CPUWorker):  # type: ignore[misc]
    """Named to the engine as worker_cls; made by vLLM in its own process."""

    def init_device(self) -> None:
        """As of the base class."""
        allow_amx()
        zero_new_blocks()
        super().init_device()


def zero_new_blocks() -> None:
    """Has the scheduler, made after this worker, name each newly taken block, and the worker zero it.

    vLLM does so by itself for models whose layers read before they write.
    """
    KVCacheConfig.needs_kv_cache_zeroing = property(lambda _: True)


def allow_amx() -> bool:
    """Asks the kernel for AMX tiles if the CPU has them; returns whether they may be used.

    The two functions are torch's own and private: without them, or on another CPU, nothing happens.
    """
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    ask = getattr(torch.cpu, "_init_amx", None)
    if supported is None or ask is None or not supported():
        return False
    allowed = bool(ask())
    if not allowed:
        init_logger(__name__).error(
            "The CPU has AMX, and the kernel does not allow it: a bfloat16 base may die of SIGILL. "
            "Set GRAFT_INFERENCE_DTYPE=float32."
        )
    return allowed
