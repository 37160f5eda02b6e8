"""Has vLLM serve DoRA and IA3: the entry point `graft_scales` of vllm.general_plugins.

vLLM loads it in each of its processes, also where nobody wants it, so it does nothing unless
VLLM_PLUGINS names `graft_scales`; `graft` brings it too. Graft's own workers call install() by themselves.
"""

from __future__ import annotations

import os

from services.inference.vllm_plugin import cpu_lora_entry

PLUGINS = ("graft_scales",)
VARIABLE = "GRAFT_SCALES"
OFF = "off"
KINDS = frozenset({"DORA", "IA3"})


def register() -> None:
    """What the entry point names."""
    if not set(PLUGINS).isdisjoint(os.environ.get("VLLM_PLUGINS", "").split(",")):
        cpu_lora_entry.register()
        install()


def wanted() -> bool:
    """Whether it is not switched off."""
    return os.environ.get(VARIABLE, "") != OFF


def install(*, compiled: bool = False) -> None:
    """In this process, before a model is loaded; any number of times. On a CPU after cpu_lora_entry.install().

    Args:
        compiled: the model will be compiled on a CPU, LoRA included.
    """
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
    from vllm.platforms import current_platform

    if not wanted() or hasattr(BaseLinearLayerWithLoRA, "graft_way"):
        return
    from services.inference.vllm_plugin import scales_layers, scales_loading
    from services.inference.vllm_plugin.scales_layers import Way

    grouped = current_platform.is_cpu() and cpu_lora_entry.installed()
    way = Way.ALWAYS if not grouped else Way.COMPILED if compiled else Way.GROUPED
    scales_loading.install()
    scales_layers.install(way)
    BaseLinearLayerWithLoRA.graft_way = way
