"""What a vLLM engine is started with; the same settings on CPU and GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.inference.engines import vllm_cpu
from services.inference.vllm_plugin import cpu_lora_entry

# The only ranks that vLLM's kernels are made for.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_CPU_WORKER = "services.inference.engines.vllm_cpu_worker.GraftCpuWorker"
_CPU_SCHEDULER = "services.inference.engines.vllm_cpu_scheduler.GraftCpuScheduler"


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """Settings of the engine; see InferenceSettings for what they mean."""

    base: Path
    max_adapters: int
    max_lora_rank: int
    max_model_len: int | None
    max_num_seqs: int
    dtype: str
    quantization: str | None
    gpu_memory_utilization: float
    cpu_kv_cache_gib: int
    enforce_eager: bool
    enable_prefix_caching: bool
    seed: int
    trust_remote_code: bool
    metrics: bool = True
    traces_endpoint: str | None = None
    max_cpu_adapters: int | None = None
    tensor_parallel_size: int = 1


def engine_arguments(options: VllmOptions) -> dict[str, Any]:
    """The fields of AsyncEngineArgs; set_environment() comes first."""
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    arguments: dict[str, Any] = {
        "model": str(options.base),
        "max_model_len": options.max_model_len,
        "max_num_seqs": options.max_num_seqs,
        "dtype": options.dtype,
        "quantization": options.quantization,
        "enforce_eager": options.enforce_eager,
        "enable_prefix_caching": options.enable_prefix_caching,
        "seed": options.seed,
        "trust_remote_code": options.trust_remote_code,
        # Its log lines; what it counts is said by vllm_observability.py.
        "disable_log_stats": True,
        # vLLM takes the times of its spans from its metrics, and asserts that these are on.
        "otlp_traces_endpoint": options.traces_endpoint if options.metrics else None,
        # A request gets the defaults of the contract, not those of a file beside the base.
        "generation_config": "vllm",
    }
    if on_cpu:
        compiled = vllm_cpu.compiles(with_lora=options.max_adapters > 0)
        arguments |= {
            # What is not compiled takes vLLM's kernels instead, if that is said so early.
            "enforce_eager": options.enforce_eager or not compiled,
            "worker_cls": _CPU_WORKER,
            "scheduler_cls": _CPU_SCHEDULER,
            "distributed_executor_backend": vllm_cpu.EXECUTOR,
        }
    else:
        arguments["gpu_memory_utilization"] = options.gpu_memory_utilization
        arguments["tensor_parallel_size"] = options.tensor_parallel_size
    if options.max_adapters:
        spare = _spare_slots()
        slots = options.max_adapters + spare
        rank = next(rank for rank in _RANKS if rank >= options.max_lora_rank)
        arguments |= {
            "enable_lora": True,
            "max_loras": slots,
            "max_cpu_loras": max(slots, cpu_adapters(options) + spare),
            "max_lora_rank": rank,
        }
    return arguments


def cpu_adapters(options: VllmOptions) -> int:
    """How many adapters may be loaded at once, those included that are computed.

    vLLM moves them between main memory and its slots by itself. Where a slot has to stay empty it
    would fill that, too: there only as many are loaded as are computed.
    """
    if _spare_slots():
        return options.max_adapters
    return max(options.max_adapters, options.max_cpu_adapters or 0)


def _spare_slots() -> int:
    """Slots that must stay empty: by vLLM's own LoRA on a CPU a request for the base gets the last one's adapter."""
    from vllm.platforms import current_platform

    return 1 if current_platform.is_cpu() and not cpu_lora_entry.wanted() else 0


def set_environment(options: VllmOptions) -> None:
    """What vLLM and OpenMP take from the environment alone; what the operator set stays.

    OpenMP's threads wait for each other by spinning, for milliseconds by default. Where the front end
    and the engine share few cores that keeps the awaited thread from running: first tokens after a
    second instead of a tenth (docs/bench.md). So they spin for microseconds, and then sleep.
    """
    defaults = {
        "VLLM_CPU_KVCACHE_SPACE": str(options.cpu_kv_cache_gib),
        "GOMP_SPINCOUNT": "1000",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # A forked engine would keep the sockets of callers open, which it inherits when it is started
        # anew while the service serves.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # Nothing is reported to anybody, nothing fetched from anywhere.
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if options.traces_endpoint:
        # The engine's processes send spans of their own start.
        defaults["OTEL_SERVICE_NAME"] = "graft-inference-engine"
        if protocol := os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL"):
            # The only one of the two that vLLM reads.
            defaults["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = protocol
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
