"""What a vLLM engine is started with; the same settings on CPU and GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.inference.engines import vllm_cpu
from services.inference.engines.vllm_pooling import EXTENSION
from services.inference.vllm_plugin import cpu_lora_entry, scales_entry, soft_entry
from services.inference.vllm_plugin.lora_pages import Paging

# The only ranks that vLLM's kernels are made for.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_CPU_WORKER = "services.inference.engines.vllm_cpu_worker.GraftCpuWorker"
_GPU_WORKER = "services.inference.engines.vllm_gpu_worker.GraftGpuWorker"
_CPU_SCHEDULER = "services.inference.engines.vllm_cpu_scheduler.GraftCpuScheduler"
# Different weight matrices that steps of one size go through: attention's in and out, the MLP's, the head's.
_MATRICES = 5
# Prompts join the streams' steps: their sizes go up to about three times as many tokens as there are streams.
_SIZES_PER_STREAM = 3
# Of a long prompt's steps, whose sizes are any.
_PROMPT_KERNELS = 256
# oneDNN's own bound.
_MOST_KERNELS = 1024


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
    lora_page_rank: int = 0
    tensor_parallel_size: int = 1
    tool_parser: str = ""
    soft_prompts: bool = True


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
        # The one whose every step is bounded; its grammars are tried by structure_trial.py beforehand.
        "structured_outputs_config": {"backend": "guidance"},
        "worker_extension_cls": EXTENSION,
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
        if current_platform.is_cuda_alike():
            arguments["worker_cls"] = _GPU_WORKER
    if options.soft_prompts:
        arguments["enable_prompt_embeds"] = True
    if options.max_adapters:
        spare = _spare_slots()
        slots = computed_adapters(options) + spare
        if (paging := paging_of(options)) is not None:
            arguments["additional_config"] = paging.as_setting()
        arguments |= {
            "enable_lora": True,
            "max_loras": slots,
            "max_cpu_loras": max(slots, cpu_adapters(options) + spare),
            "max_lora_rank": _rank(options),
        }
    return arguments


def served_kinds(options: VllmOptions) -> frozenset[str]:
    """The kinds of adapters that the workers compute (Limits.kinds)."""
    from vllm.platforms import current_platform

    ours = current_platform.is_cpu() or current_platform.is_cuda_alike()
    if not options.max_adapters or not ours or not scales_entry.wanted():
        return frozenset({"LORA"})
    return frozenset({"LORA"}) | scales_entry.KINDS


def paging_of(options: VllmOptions) -> Paging | None:
    """How small adapters share the slots of large ones; None where each takes one of its own.

    vLLM's kernels on a GPU go by slot.
    """
    from vllm.platforms import current_platform

    page_rank, rank = options.lora_page_rank, _rank(options)
    if not page_rank or not current_platform.is_cpu() or not cpu_lora_entry.wanted():
        return None
    # More pages than adapters are loaded would be of no use: they are as large as that allows.
    while rank // page_rank * options.max_adapters > cpu_adapters(options):
        page_rank *= 2
    if page_rank >= rank or rank % page_rank:
        return None
    return Paging(options.max_adapters, rank, page_rank)


def computed_adapters(options: VllmOptions) -> int:
    """How many adapters may be computed at once, if they are as small as can be."""
    paging = paging_of(options)
    return options.max_adapters if paging is None else paging.pages


def _rank(options: VllmOptions) -> int:
    return next(rank for rank in _RANKS if rank >= options.max_lora_rank)


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


def cpu_kernels(max_num_seqs: int) -> int:
    """How many compiled products a CPU engine keeps.

    oneDNN compiles one for each matrix and number of tokens in a step, about 0.3 MiB each even for small
    matrices, and would keep 1,024: an engine grew for hours, with each size that it saw for the first time.
    """
    sizes = _SIZES_PER_STREAM * max_num_seqs
    return min(_MOST_KERNELS, _MATRICES * sizes + _PROMPT_KERNELS)


def set_environment(options: VllmOptions) -> None:
    """What vLLM and OpenMP take from the environment alone; what the operator set stays.

    OpenMP's threads wait for each other by spinning, for milliseconds by default. Where the front end
    and the engine share few cores that keeps the awaited thread from running: first tokens after a
    second instead of a tenth (docs/bench.md). So they spin for microseconds, and then sleep.
    """
    defaults = {
        "VLLM_CPU_KVCACHE_SPACE": str(options.cpu_kv_cache_gib),
        "GOMP_SPINCOUNT": "1000",
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(cpu_kernels(options.max_num_seqs)),
        "VLLM_LOGGING_LEVEL": "WARNING",
        # A forked engine would keep the sockets of callers open, which it inherits when it is started
        # anew while the service serves.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # With AMX it would round the activations of a 4-bit base to 8 bits: faster, and other answers
        # than transformers'.
        "VLLM_CPU_INT4_W4A8": "0",
        # Nothing is reported to anybody, nothing fetched from anywhere.
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if options.soft_prompts:
        defaults[soft_entry.VARIABLE] = "1"
    if options.traces_endpoint:
        # The engine's processes send spans of their own start.
        defaults["OTEL_SERVICE_NAME"] = "graft-inference-engine"
        if protocol := os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL"):
            # The only one of the two that vLLM reads.
            defaults["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = protocol
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
