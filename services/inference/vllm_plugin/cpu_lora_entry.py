"""Has vLLM compute LoRA on a CPU by cpu_lora.py: the entry point `graft_cpu_lora` of vllm.general_plugins.

vLLM loads it in each of its processes, also where nobody wants it, so it does nothing unless
VLLM_PLUGINS names `graft` or `graft_cpu_lora`. Graft's own CPU worker calls install() by itself.
"""

from __future__ import annotations

import os

from services.inference.vllm_plugin import lora_lookup
from services.inference.vllm_plugin.lora_pages import Paging

PLUGINS = ("graft", "graft_cpu_lora")
VARIABLE = "GRAFT_CPU_LORA"
STOCK = "stock"
_WRAPPER = "services.inference.vllm_plugin.cpu_lora.GroupedPunicaWrapper"


def register() -> None:
    """What the entry point names."""
    if not set(PLUGINS).isdisjoint(os.environ.get("VLLM_PLUGINS", "").split(",")):
        install()


def wanted() -> bool:
    """Whether it is not switched off."""
    return os.environ.get(VARIABLE, "") != STOCK


def installed() -> bool:
    """Whether install() has been called here, and did something."""
    from vllm.platforms import current_platform

    return bool(type(current_platform).get_punica_wrapper() == _WRAPPER)


def install(*, compiled: bool = False, paging: Paging | None = None) -> None:
    """Takes the place of vLLM's own in this process; before a model is loaded, any number of times.

    Args:
        compiled: the model will be compiled, LoRA included.
        paging: how small adapters share large slots, if they do.
    """
    from vllm.platforms import current_platform

    platform = type(current_platform)
    if not wanted() or not current_platform.is_cpu() or platform.get_punica_wrapper() == _WRAPPER:
        return
    platform.get_punica_wrapper = classmethod(lambda cls: _WRAPPER)
    lora_lookup.install()
    if paging is not None:
        from services.inference.vllm_plugin import cpu_lora_paged

        cpu_lora_paged.install(paging)
    if compiled:
        from services.inference.vllm_plugin import cpu_lora_compiled

        cpu_lora_compiled.install()
