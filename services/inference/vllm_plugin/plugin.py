"""Composition root of the plugin: the only place that constructs, once vLLM's event loop runs."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graft.channel import open_channel
from graft.errors import GraftError
from graft.keys import load_trusted
from graft.signatures import SignaturePolicy
from prometheus_client import CollectorRegistry
from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from services.inference.cache import AdapterCache
from services.inference.metrics import InferenceMetrics
from services.inference.registry.remote import RemoteRegistry
from services.inference.vllm_plugin.engine_base import EngineBase
from services.inference.vllm_plugin.follower import Follower
from services.inference.vllm_plugin.names import EngineNames
from services.inference.vllm_plugin.resolver import RegistryResolver
from services.inference.vllm_plugin.settings import PluginSettings
from services.inference.vllm_plugin.table import ModelTable
from services.inference.vllm_plugin.versions import Versions

if TYPE_CHECKING:
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels

# Below "vllm", so that the lines go where the server's own go.
LOG = "vllm.graft"


@dataclass(frozen=True, slots=True)
class _Parts:
    base: EngineBase
    versions: Versions
    table: ModelTable
    resolver: RegistryResolver


class GraftPlugin(LoRAResolver):  # type: ignore[misc]
    """What vLLM's resolver registry holds; made in each of vLLM's processes, at work in the server's.

    Raises:
        GraftError: INVALID_REQUEST when a trusted key cannot be read: a server that was told to
            verify does not start without its keys.
    """

    def __init__(self, settings: PluginSettings) -> None:
        self._settings = settings
        self._trusted = (
            ()
            if settings.signature_policy is SignaturePolicy.OFF
            else load_trusted(settings.trusted_keys)
        )
        self._log = logging.getLogger(LOG)
        self._made: _Parts | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._registries: list[RemoteRegistry] = []

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """As of vLLM's LoRAResolver; raises nothing."""
        return await self._parts.resolver.resolve_lora(base_model_name, lora_name)

    def attach(
        self,
        models: OpenAIServingModels,
        model: str,
        revision: str | None,
        max_rank: int,
        chat_template: str = "",
    ) -> None:
        """Has this server's names follow the registry; call it in the server's event loop.

        Args:
            models: the server's table of names.
            model: vLLM's --model.
            revision: vLLM's --revision.
            max_rank: vLLM's --max-lora-rank.
            chat_template: vLLM's --chat-template.
        """
        parts, settings = self._parts, self._settings
        parts.base.revision = revision
        parts.versions.max_rank = max_rank
        parts.versions.chat_template = chat_template
        parts.table.attach(models)
        if not settings.allow_load:
            parts.table.close_loading()
        parts.resolver.follower = Follower(self._open_registry, parts.resolver.refresh, self._log)
        self._log.info("Adapters come from the Graft registry at %s", settings.registry_address)
        self._tasks.append(asyncio.create_task(self._read_base(model)))

    def describe(self) -> dict[str, object]:
        """What is served under which name, and whether the registry is heard, for each namespace."""
        follower = self._parts.resolver.follower
        followed = {} if follower is None else follower.followed
        models = []
        for entry in self._parts.table.describe():
            known = followed.get(str(entry["model"]))
            version = None if known is None else known.version
            told = {} if version is None else {"version": version.name, "digest": version.digest}
            models.append(entry | told)
        return {"connected": {} if follower is None else follower.connected, "models": models}

    async def close(self) -> None:
        """Ends following and frees the connection."""
        if self._made is None:
            return
        if self._made.resolver.follower is not None:
            await self._made.resolver.follower.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for registry in self._registries:
            await registry.close()

    @property
    def _parts(self) -> _Parts:
        # A channel belongs to the event loop that runs when it is made.
        if self._made is None:
            self._made = self._make()
        return self._made

    def _make(self) -> _Parts:
        settings = self._settings
        registry = self._open_registry(settings.namespace)
        # vLLM's /metrics has its own registry; the stages of a fetch are not in it.
        cache = AdapterCache(settings.cache_dir, registry, InferenceMetrics(CollectorRegistry()))
        base = EngineBase(settings.base)
        versions = Versions(
            registry,
            cache,
            base,
            settings.signature_policy,
            self._trusted,
            settings.answer_timeout_s,
            self._log,
        )
        table = ModelTable(EngineNames())
        resolver = RegistryResolver(
            settings.namespace, settings.retry_s, versions, table, self._log
        )
        return _Parts(base, versions, table, resolver)

    def _open_registry(self, namespace: str) -> RemoteRegistry:
        registry = RemoteRegistry(open_channel(self._settings.registry_address), namespace)
        self._registries.append(registry)
        return registry

    async def _read_base(self, model: str) -> None:
        """Early, so that the first request does not wait for it."""
        try:
            base = await self._parts.base.get(model)
            self._log.info("The base %s has the fingerprint %s", model, base.fingerprint)
        except GraftError as error:
            self._log.error("No adapter can be served: %s", error)
