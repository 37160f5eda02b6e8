"""vLLM's own table of the names that requests may use: how an entry is replaced without a request noticing.

The only place, besides the entry points, that knows how vLLM keeps adapters (OpenAIServingModels of 0.32).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from vllm.lora.request import LoRARequest

from services.inference.domain import AdapterVersion
from services.inference.vllm_plugin.names import EngineNames

if TYPE_CHECKING:
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse
    from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest


class ModelTable:
    """Asked names and the loads behind them.

    Before attach() it only makes the loads that vLLM itself enters; then it can replace them too.
    """

    def __init__(self, names: EngineNames) -> None:
        self._names = names
        self._models: OpenAIServingModels | None = None
        self._loads: dict[tuple[str, AdapterVersion], LoRARequest] = {}

    def attach(self, models: OpenAIServingModels) -> None:
        """From now on entries of this server can be replaced."""
        self._models = models

    def new_load(self, asked: str, version: AdapterVersion, folder: Path) -> LoRARequest:
        """A load that vLLM enters under asked, with a number that it chooses."""
        load = LoRARequest(self._names.new(version), 1, str(folder))
        self._loads[asked, version] = load
        return load

    def lock(self, asked: str) -> asyncio.Lock:
        """vLLM's lock of a name: while it is held, nobody else enters or removes it."""
        lock: asyncio.Lock = self._server.lora_resolver_lock[asked]
        return lock

    @property
    def entries(self) -> Mapping[str, LoRARequest]:
        """What is entered now, by asked name."""
        entries: Mapping[str, LoRARequest] = self._server.lora_requests
        return entries

    async def replace(self, asked: str, version: AdapterVersion, folder: Path) -> None:
        """Loads a version beside the present one and then lets the name mean it.

        A request that has begun ends on what it began with: its load keeps its number, and vLLM
        forgets it when it needs the room. A version that comes back gets the load that it had:
        content under a digest never changes.
        """
        server = self._server
        load = self._loads.get((asked, version))
        if load is None:
            load = self.new_load(asked, version, folder)
            load.lora_int_id = server.lora_id_counter.inc(1)
        try:
            await server.engine_client.add_lora(load)
        except BaseException:
            self._loads.pop((asked, version), None)
            # vLLM keeps the number of a failed load, and would serve garbage under it.
            await server.engine_client.remove_lora(load.lora_int_id)
            raise
        server.lora_requests[asked] = load

    def drop(self, asked: str) -> None:
        """The name means nothing any more."""
        self._server.lora_requests.pop(asked, None)

    def close_loading(self) -> None:
        """Refuses whoever brings an adapter by its path: only verified versions are served."""

        # Imported here, as only the server's process has vLLM's HTTP side.
        from vllm.entrypoints.serve import create_error_response

        async def refuse(
            request: LoadLoRAAdapterRequest, base_model_name: str | None = None
        ) -> ErrorResponse:
            return create_error_response(
                f"Adapters come from the Graft registry here, so {request.lora_name!r} is not loaded "
                "from a path. Push it with `graft adapters push`, or start the server with "
                "GRAFT_VLLM_ALLOW_LOAD=1.",
                err_type="PermissionDeniedError",
                status_code=HTTPStatus.FORBIDDEN,
            )

        # The method, not a route: several routes lead to it, SageMaker's /adapters among them.
        self._server.load_lora_adapter = refuse

    def describe(self) -> Iterator[dict[str, object]]:
        """Every entry, for the status route; none before attach()."""
        for asked, load in self.entries.items() if self._models is not None else ():
            yield {"model": asked, "serves": load.lora_name, "id": load.lora_int_id}

    @property
    def _server(self) -> OpenAIServingModels:
        assert self._models is not None, "attach() comes first"
        return self._models
