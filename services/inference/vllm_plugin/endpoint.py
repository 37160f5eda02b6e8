"""vLLM's HTTP server as the plugin meets it: the entry point of vllm.endpoint_plugins, `graft`.

vLLM loads it only where VLLM_PLUGINS names it.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import State
from vllm import envs
from vllm.engine.protocol import EngineClient
from vllm.lora.resolver import LoRAResolverRegistry

from services.inference.vllm_plugin.entry import PLUGIN
from services.inference.vllm_plugin.plugin import LOG, GraftPlugin

STATUS_PATH = "/graft/adapters"


class RegistryEndpoint:
    """Gives the resolver the server, so that names follow.

    Its one route, GET /graft/adapters, tells which version each name serves.
    """

    name = PLUGIN
    required_tasks = None

    def attach_router(self, app: FastAPI) -> None:
        """Adds the route."""
        app.add_api_route(STATUS_PATH, self._describe, methods=["GET"])

    async def init_state(
        self, engine_client: EngineClient | None, state: State, args: Namespace
    ) -> None:
        """Called by vLLM once its own state is made."""
        log = logging.getLogger(LOG)
        lora = None if engine_client is None else engine_client.vllm_config.lora_config
        if engine_client is None or lora is None:
            log.warning("This server takes no adapters: start it with --enable-lora")
            return
        if not envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING:
            log.warning("vLLM asks no resolver without VLLM_ALLOW_RUNTIME_LORA_UPDATING=1")
            return
        config = engine_client.model_config
        _plugin().attach(
            state.openai_serving_models,
            config.model,
            config.revision,
            lora.max_lora_rank,
            str(getattr(args, "chat_template", None) or ""),
        )

    async def _describe(self) -> dict[str, Any]:
        return _plugin().describe()


def _plugin() -> GraftPlugin:
    found = LoRAResolverRegistry.get_resolver(PLUGIN)
    assert isinstance(found, GraftPlugin), f"somebody else registered a resolver named {PLUGIN}"
    return found
