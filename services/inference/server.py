"""Composition root of the inference service: the only place that constructs."""

from __future__ import annotations

import asyncio
from pathlib import Path

from graft.channel import open_channel
from graft.errors import GraftError, Reason, UnavailableError
from graft.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from graft.keys import PublicKey, load_trusted
from graft.leases import LeaseKeeper
from graft.names import base_name, default_base_id
from graft.signatures import SignaturePolicy
from prometheus_client import CollectorRegistry

from services.common.logs import get_logger
from services.common.server import GrpcServer
from services.inference.answers import Answers
from services.inference.cache import AdapterCache
from services.inference.catalogue import Catalogue
from services.inference.config import InferenceSettings
from services.inference.domain import Base
from services.inference.engines.base import Engine
from services.inference.engines.fake import FakeEngine
from services.inference.engines.vllm import VllmEngine
from services.inference.engines.vllm_arguments import VllmOptions
from services.inference.follower import Follower
from services.inference.metrics import InferenceMetrics
from services.inference.models import Models
from services.inference.pace import Pace
from services.inference.prompts import Prompts
from services.inference.registry.base import Registry
from services.inference.registry.memory import MemoryRegistry
from services.inference.registry.remote import RemoteRegistry
from services.inference.residency import Residency, ResidencyOptions
from services.inference.router import Router
from services.inference.scheduling.scheduler import Scheduler, SchedulingOptions
from services.inference.servicer import InferenceServicer
from services.inference.swaps import Swaps
from services.inference.trust import Trust

SERVICE = inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
_RETRY_S = 0.5


class InferenceServer:
    """Everything of one process. A test may bring its own engine and registry."""

    def __init__(
        self,
        settings: InferenceSettings,
        *,
        engine: Engine | None = None,
        registry: Registry | None = None,
    ) -> None:
        self._settings = settings
        self._trusted = _trusted(settings)
        self.metrics_registry = CollectorRegistry()
        self._metrics = InferenceMetrics(self.metrics_registry)
        self.engine = engine or make_engine(settings)
        self.registry = registry or make_registry(settings)
        self.grpc = GrpcServer(settings, [SERVICE], self.metrics_registry)
        self._watching: asyncio.Task[None] | None = None
        self._close: list[Swaps | Residency] = []
        self._follower: Follower | None = None
        self._residency: Residency | None = None
        self._lease: LeaseKeeper | None = None

    @property
    def address(self) -> str:
        """host:port of gRPC, once started."""
        return self.grpc.address

    async def start(self) -> None:
        """Engine, then the registry's state, then calls: whoever gets SERVING gets answers.

        Raises:
            GraftError: NOT_A_MODEL, ALREADY_EXISTS when the registry knows another base by this name.
        """
        settings = self._settings
        base_id = settings.base_name or default_base_id(str(settings.base.absolute()))
        name = base_name(settings.namespace, base_id)
        await self.engine.start()
        fingerprint = await self._record_base(name)
        self._build(Base(name, fingerprint))
        assert self._follower is not None
        await self._hold_residents()
        await self._follower.start()
        await self.grpc.start()
        self._watching = asyncio.create_task(self._watch_engine())

    async def _record_base(self, name: str) -> str:
        while True:
            try:
                return await self.registry.record_base(self._settings.base, name)
            except UnavailableError as error:
                get_logger().warning("waiting for the registry", error=error.message)
                await asyncio.sleep(_RETRY_S)

    async def _hold_residents(self) -> None:
        """What is resident, or on its way, is not collected; serving never waits for that."""
        residency = self._residency
        assert residency is not None
        self._lease = self.registry.lease(
            lambda: {each.version.name for each in residency.instances()}
        )
        if self._lease is not None:
            residency.on_change = self._lease.changed
            await self._lease.start()

    def _build(self, base: Base) -> None:
        settings, metrics = self._settings, self._metrics
        cache = AdapterCache(cache_dir(settings), self.registry, metrics)
        options = ResidencyOptions(
            settings.max_waiting, settings.slot_timeout_s, settings.retry_failed_after_s
        )
        trust = Trust(self.registry, settings.signature_policy, self._trusted)
        residency = Residency(self.engine, cache, base, metrics, options, trust)
        catalogue = Catalogue()
        swaps = Swaps(catalogue, self.registry, residency, metrics)
        router = Router(base, catalogue, self.registry, swaps)
        limit = self.engine.limits.max_adapters
        self._follower = Follower(self.registry, base, catalogue, swaps, metrics, limit)
        pace = Pace(settings.max_flush_interval_s)
        prompts = Prompts(self.engine, base)
        scheduler = Scheduler(_scheduling(settings), lambda: self.engine.limits.max_adapters)
        metrics.watch_queue(lambda: scheduler.waiting)
        answers = Answers(self.engine, router, residency, prompts, base, metrics, pace, scheduler)
        models = Models(base, catalogue, swaps, residency)
        servicer = InferenceServicer(
            answers,
            prompts,
            models,
            residency,
            self._follower,
            base,
            settings.stalled_after_s,
        )
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, self.grpc.grpc)
        self._close, self._residency = [swaps, residency], residency

    async def _watch_engine(self) -> None:
        """A dead engine is said by health and by every call; the process stays to say it.

        Whoever watches health starts it anew: an engine is never replaced within a process.
        """
        await self.engine.wait_dead()
        get_logger().critical("the engine has died")
        await self.grpc.set_serving(False)

    async def stop(self) -> None:
        """Drains calls in flight, then ends everything that was started, in reverse."""
        try:
            await self._stop_serving()
        finally:
            await self.engine.stop()
            await self.registry.close()

    async def _stop_serving(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            await self.grpc.drain()
        if self._follower is not None:
            await self._follower.stop()
        for each in self._close:
            await each.close()
        if self._lease is not None:
            await self._lease.close()


def _trusted(settings: InferenceSettings) -> tuple[PublicKey, ...]:
    found = load_trusted(settings.trusted_keys)
    if settings.signature_policy is SignaturePolicy.REQUIRE and not found:
        raise GraftError(
            Reason.INVALID_REQUEST,
            "GRAFT_INFERENCE_SIGNATURE_POLICY is require, and no key is trusted",
            next_step='Name public keys, for example GRAFT_INFERENCE_TRUSTED_KEYS=["/keys/ci.pub"].',
        )
    return found


def _scheduling(settings: InferenceSettings) -> SchedulingOptions:
    return SchedulingOptions(
        max_in_flight=settings.max_in_flight or settings.max_num_seqs,
        max_waiting=settings.max_waiting,
        slot_turn_s=settings.slot_turn_s,
        slot_timeout_s=settings.slot_timeout_s,
        rate_limit_wait_s=settings.rate_limit_wait_s,
        adapter_limits=settings.adapter_limits,
        namespace_limits=settings.namespace_limits,
    )


def cache_dir(settings: InferenceSettings) -> Path:
    """Where fetched adapters are kept."""
    return settings.cache_dir or settings.data_dir / "inference" / "adapters"


def make_registry(settings: InferenceSettings) -> Registry:
    """The registry at the configured address, or an empty one for a base alone."""
    if not settings.registry_address:
        return MemoryRegistry()
    return RemoteRegistry(open_channel(settings.registry_address), settings.namespace)


def make_engine(settings: InferenceSettings) -> Engine:
    """The configured engine."""
    if settings.engine == "fake":
        return FakeEngine(settings.max_adapters, settings.max_lora_rank)
    return VllmEngine(
        VllmOptions(
            base=settings.base,
            max_adapters=settings.max_adapters,
            max_lora_rank=settings.max_lora_rank,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            dtype=settings.dtype,
            quantization=settings.quantization,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            cpu_kv_cache_gib=settings.cpu_kv_cache_gib,
            enforce_eager=settings.enforce_eager,
            enable_prefix_caching=settings.enable_prefix_caching,
            seed=settings.seed,
            trust_remote_code=settings.trust_remote_code,
        )
    )
