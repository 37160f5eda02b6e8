"""What vLLM's configuration of a CPU engine is told otherwise: one process, and compilation with LoRA too.

Nothing here is used on a GPU.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from services.inference.vllm_plugin import cpu_lora_entry

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# By its full name: vLLM takes its short one for a slip on a CPU (see one_process()).
EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


@contextmanager
def one_process(config: VllmConfig) -> Iterator[None]:
    """What an engine has to find in its environment to compute in its core's own process, on a CPU.

    vLLM gives a CPU a worker process beside the core, because OpenMP reads at a process's start which cores
    it may use. The two then wait for each other by polling, on the core that is left for the front end
    (docs/bench.md). Here the core's process is the one that starts with it. VLLM_CPU_OMP_THREADS_BIND and
    VLLM_CPU_NUM_OF_RESERVED_CPU say the same as ever.
    """
    from vllm.platforms import current_platform
    from vllm.utils.ompmultiprocessing import OMPProcessManager

    if not current_platform.is_cpu():
        yield
        return
    with OMPProcessManager(config).configure_omp_envs(rank=0, local_rank=0):
        yield


def compiles(*, with_lora: bool) -> bool:
    """Whether an engine can be compiled: with a C++ compiler, and LoRA by ours (cpu_lora_compiled.py)."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    return compiler is not None and (cpu_lora_entry.wanted() or not with_lora)


@contextmanager
def as_without_lora(*, wanted: bool) -> Iterator[None]:
    """Within it vLLM configures a CPU engine with LoRA as one without: it is compiled.

    vLLM sets that aside where it sees LoRA, and its choice of kernels for what is not compiled with it.
    """
    from vllm.platforms import current_platform

    if not wanted:
        yield
        return
    platform = type(current_platform)
    check = platform.__dict__["check_and_update_config"]

    def checked(cls: type, config: VllmConfig) -> None:
        lora, config.lora_config = config.lora_config, None
        try:
            check.__func__(cls, config)
        finally:
            config.lora_config = lora

    platform.check_and_update_config = classmethod(checked)
    try:
        yield
    finally:
        platform.check_and_update_config = check
