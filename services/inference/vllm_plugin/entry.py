"""What the installed entry point names in vllm.general_plugins, `graft`.

vLLM loads it in each of its processes, also where nobody wants it, so nothing is imported here. It
does nothing unless VLLM_PLUGINS names `graft`: whoever only has the package installed gets no second
source of adapters.
"""

from __future__ import annotations

import os

PLUGIN = "graft"


def register_resolver() -> None:
    """Has vLLM ask the registry for names that it does not know; on a CPU, also cpu_lora.py.

    Raises:
        GraftError: a setting is wrong; the server does not start then.
    """
    if PLUGIN not in os.environ.get("VLLM_PLUGINS", "").split(","):
        return
    from vllm.lora.resolver import LoRAResolverRegistry

    from services.inference.vllm_plugin import cpu_lora_entry, scales_entry
    from services.inference.vllm_plugin.plugin import GraftPlugin
    from services.inference.vllm_plugin.settings import PluginSettings

    LoRAResolverRegistry.register_resolver(PLUGIN, GraftPlugin(PluginSettings.from_environment()))
    cpu_lora_entry.install()
    scales_entry.install()
