"""vLLM's CPU worker, with what it forgets (asking the kernel for AMX before using it) and a faster LoRA.

Linux lets a process use AMX tiles only after it asked (arch_prctl ARCH_REQ_XCOMP_PERM). vLLM's bfloat16
attention does not ask, and a worker in which no other library has done so by chance dies of SIGILL.
A GPU engine never sees this class; where the CPU has no AMX, it does nothing; where the kernel
refuses, the service goes on to what vLLM does then, and its log has the reason beforehand.

LoRA by groups of tokens is that of the plugin, see docs/cpu-lora.md; no entry point has to be installed.
"""

from __future__ import annotations

import torch
from vllm.config import CompilationMode
from vllm.logger import init_logger
from vllm.v1.sample import sampler
from vllm.v1.worker.cpu_worker import CPUWorker

from services.inference.engines.orphans import end_with_ancestors
from services.inference.vllm_plugin import cpu_lora_entry, scales_entry
from services.inference.vllm_plugin.lora_pages import Paging


class GraftCpuWorker(CPUWorker):  # type: ignore[misc]
    """Named to the engine as worker_cls; made by vLLM in its own process."""

    def init_device(self) -> None:
        """As of the base class."""
        end_with_ancestors()  # It is in the core's process, which the service started.
        allow_amx()
        count_without_compiling()
        compiled = self.vllm_config.compilation_config.mode != CompilationMode.NONE
        paging = Paging.of(self.vllm_config.additional_config)
        cpu_lora_entry.install(compiled=compiled, paging=paging)
        scales_entry.install(compiled=compiled)
        super().init_device()


def count_without_compiling() -> None:
    """Ranks tokens for log probabilities as they are: vLLM compiles that with the first request that asks.

    On a CPU this takes seconds, and everybody's streams stand still; what it saves is one copy of a mask.
    """
    compiled = sampler.batched_count_greater_than
    sampler.batched_count_greater_than = getattr(compiled, "_torchdynamo_orig_callable", compiled)


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
