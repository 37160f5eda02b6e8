"""What the engine of this machine computes on, and which quantizations vLLM knows for it. Imports vLLM when asked."""

from __future__ import annotations

from functools import cache

from services.inference.bases.quantization import Device


@cache
def this_device() -> Device:
    """The first of its devices."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.platforms import current_platform
    from vllm.plugins import load_general_plugins

    # Some add quantizations.
    load_general_plugins()
    if current_platform.is_cpu():
        return Device("a CPU", False, 0, dict.fromkeys(QUANTIZATION_METHODS, 0))
    capability = current_platform.get_device_capability()
    methods = {name: _least_capability(name) for name in QUANTIZATION_METHODS}
    name, found = current_platform.get_device_name(), capability.to_int() if capability else 0
    return Device(name, True, found, methods)


def _least_capability(method: str) -> int:
    from vllm.model_executor.layers.quantization import get_quantization_config

    try:
        return int(get_quantization_config(method).get_min_capability())
    except (ImportError, NotImplementedError):  # Of a library that is not installed.
        return 0


def gpu_memory() -> tuple[int, int]:
    """Bytes of the first GPU that the engine is given: free, and in all."""
    from vllm.platforms import current_platform
    from vllm.third_party import pynvml

    pynvml.nvmlInit()
    try:
        index = current_platform.device_id_to_physical_device_id(0)
        info = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index))
        return int(info.free), int(info.total)
    finally:
        pynvml.nvmlShutdown()
