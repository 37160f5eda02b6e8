"""Composition root of the inference service: the only place that constructs."""

from __future__ import annotations

import asyncio
import os
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
from services.common.tracing import Tracing
from services.common.tracing_setup import otlp_endpoint, tracing_from_environment
from services.inference.answers import Answers
from services.inference.cache import AdapterCache
from services.inference.catalogue import Catalogue
from services.inference.config import InferenceSettings
from services.inference.domain import Base
from services.inference.engines.base import Engine
from services.inference.engines.fake import FakeEngine
from services.inference.engines.metrics import EngineCollector
from services.inference.engines.vllm import VllmEngine
from services.inference.engines.vllm_arguments import VllmOptions
from services.inference.follower import Follower
from services.inference.gate import Gate
from services.inference.loading import Preparation
from services.inference.lora_info import LoraInfo
from services.inference.metrics import InferenceMetrics, MetricsOptions
from services.inference.models import Models
from services.inference.pace import Pace
from services.inference.prefetch import Prefetch
from services.inference.production import Production
from services.inference.prompts import Prompts
from services.inference.registry.base import Registry
from services.inference.registry.memory import MemoryRegistry
from services.inference.registry.remote import RemoteRegistry
from services.inference.required import Pins, Required
from services.inference.residency import Residency, ResidencyOptions
from services.inference.router import Router
from services.inference.scheduling.scheduler import Scheduler, SchedulingOptions
from services.inference.servicer import InferenceServicer
from services.inference.starting import StartingServicer
from services.inference.supervisor import Probes, RestartOptions, Supervisor
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
        tracing: Tracing | None = None,
    ) -> None:
        self._settings = settings
        self._trusted = _trusted(settings)
        self.metrics_registry = CollectorRegistry()
        self._tracing = tracing or tracing_from_environment("inference")
        self._metrics = make_metrics(settings, self.metrics_registry, self._tracing)
        self.engine = engine or make_engine(settings)
        EngineCollector(self.engine, self.metrics_registry)
        self._metrics.engine_up.set_function(lambda: self.engine.healthy)
        self.registry = registry or make_registry(settings)
        self.grpc = GrpcServer(settings, [SERVICE], self.metrics_registry, self._tracing)
        self._front = StartingServicer()
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(
            self._front, self.grpc.grpc
        )
        self.gate = Gate(self.engine, settings.engine_wait_s, settings.max_waiting)
        self._cache = AdapterCache(
            cache_dir(settings), self.registry, self._metrics, settings.cache_max_bytes
        )
        self._supervisor: Supervisor | None = None
        self._required: Required | None = None
        self._serving = False
        self._close: list[Swaps | Residency | Prefetch] = []
        self._follower: Follower | None = None
        self.residency: Residency | None = None
        self._lease: LeaseKeeper | None = None

    @property
    def address(self) -> str:
        """host:port of gRPC, once started."""
        return self.grpc.address

    async def start(self) -> None:
        """Engine, the registry's state, calls, the required models: whoever is told ready gets answers.

        It listens from the beginning, to say that it is alive and starting.

        Raises:
            GraftError: NOT_A_MODEL, ALREADY_EXISTS when the registry knows another base by this name.
        """
        settings = self._settings
        base_id = settings.base_name or default_base_id(str(settings.base.absolute()))
        name = base_name(settings.namespace, base_id)
        await self.grpc.listen()
        await self.engine.start()
        fingerprint = await self._record_base(name)
        servicer = self._build(Base(name, fingerprint))
        assert self._follower is not None
        assert self._required is not None
        assert self._supervisor is not None
        self._supervisor.start()
        await self._hold_residents()
        await self._follower.start()
        self._front.begin(servicer)
        await self.grpc.set_started()
        await self._required.settle()
        await self.grpc.start()
        self._serving = True
        await self._set_ready(self.gate.is_open)

    async def _record_base(self, name: str) -> str:
        while True:
            try:
                return await self.registry.record_base(self._settings.base, name)
            except UnavailableError as error:
                get_logger().warning("waiting for the registry", error=error.message)
                await asyncio.sleep(_RETRY_S)

    async def _hold_residents(self) -> None:
        """What is resident, or on its way, is not collected; serving never waits for that."""
        residency = self.residency
        assert residency is not None
        self._lease = self.registry.lease(
            lambda: {each.version.name for each in residency.instances()}
        )
        if self._lease is not None:
            residency.on_change = self._lease.changed
            await self._lease.start()

    def _build(self, base: Base) -> InferenceServicer:
        settings, metrics, gate = self._settings, self._metrics, self.gate
        options = ResidencyOptions(
            settings.max_waiting,
            settings.slot_timeout_s,
            settings.retry_failed_after_s,
            settings.retry_failed_max_s,
        )
        trust = Trust(self.registry, settings.signature_policy, self._trusted)
        preparation = Preparation(self.engine, self._cache, base, trust)
        residency = Residency(self.engine, gate, preparation, metrics, options)
        catalogue = Catalogue()
        swaps = Swaps(catalogue, self.registry, residency, metrics)
        swaps.pins = Pins([*settings.required, *settings.pinned], settings.namespace).versions
        router = Router(base, catalogue, self.registry, swaps)
        limit = self.engine.limits.max_loaded
        prefetch = Prefetch(preparation, swaps.describe)
        room = limit - len(settings.required)
        self._required = Required(
            settings.required,
            router,
            residency,
            Production(base, catalogue, room, prefetch.is_coming)
            if settings.require_production
            else None,
            metrics.required_missing.set,
        )
        self._supervise(residency, self._required)
        LoraInfo(self.engine, residency, swaps).show_in(self.metrics_registry)
        self._follower = Follower(
            self.registry,
            base,
            catalogue,
            swaps,
            metrics,
            limit,
            prefetch.want if settings.prefetch else lambda _: None,
        )
        pace = Pace(settings.max_flush_interval_s)
        prompts = Prompts(self.engine, base)
        scheduler = Scheduler(_scheduling(settings), lambda: self.engine.limits.max_adapters)
        metrics.watch_queue(lambda: scheduler.waiting)
        metrics.queue_age.set_function(lambda: scheduler.oldest_s)
        metrics.in_flight_tokens.set_function(lambda: scheduler.in_flight_tokens)
        answers = Answers(
            self.engine, gate, router, residency, prompts, base, metrics, pace, scheduler
        )
        models = Models(base, catalogue, swaps, residency)
        self._close, self.residency = [prefetch, swaps, residency], residency
        return InferenceServicer(
            answers,
            prompts,
            models,
            residency,
            self._follower,
            base,
            settings.stalled_after_s,
        )

    def _supervise(self, residency: Residency, required: Required) -> None:
        settings = self._settings
        self._supervisor = Supervisor(
            self.engine,
            self.gate,
            residency,
            required,
            self._metrics,
            Probes(self._set_ready, self.grpc.set_alive),
            RestartOptions(
                settings.engine_restart_delay_s,
                settings.engine_restart_max_s,
                settings.engine_restart_limit,
            ),
        )

    async def _set_ready(self, ready: bool) -> None:
        # Before the start is over, that says it.
        if self._serving:
            await self.grpc.set_serving(ready)

    async def stop(self) -> None:
        """Drains calls in flight, then ends everything that was started, in reverse."""
        try:
            await self._stop_serving()
        finally:
            await self.engine.stop()
            # Not before: an engine may read a folder for as long as it lives.
            self._cache.close()
            await self.registry.close()
            await asyncio.to_thread(self._tracing.close)

    async def _stop_serving(self) -> None:
        await self.grpc.refuse()
        if self._supervisor is not None:
            await self._supervisor.stop()
        if self.grpc.address:
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


def make_metrics(
    settings: InferenceSettings, registry: CollectorRegistry, tracing: Tracing
) -> InferenceMetrics:
    """The service's metrics with the configured bounds."""
    options = MetricsOptions(
        settings.metric_versions, settings.metric_linger_s, settings.thrash_window_s
    )
    return InferenceMetrics(registry, options, tracing)


def make_registry(settings: InferenceSettings) -> Registry:
    """The registry at the configured address, or an empty one for a base alone."""
    if not settings.registry_address:
        return MemoryRegistry()
    return RemoteRegistry(open_channel(settings.registry_address), settings.namespace)


def make_engine(settings: InferenceSettings) -> Engine:
    """The configured engine."""
    if settings.engine == "fake":
        return FakeEngine(
            settings.max_adapters,
            settings.max_lora_rank,
            max_cpu_adapters=settings.max_cpu_adapters or 0,
        )
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
            tensor_parallel_size=settings.tensor_parallel_size,
            cpu_kv_cache_gib=settings.cpu_kv_cache_gib,
            enforce_eager=settings.enforce_eager,
            enable_prefix_caching=settings.enable_prefix_caching,
            seed=settings.seed,
            trust_remote_code=settings.trust_remote_code,
            metrics=settings.engine_metrics,
            traces_endpoint=otlp_endpoint(os.environ),
            max_cpu_adapters=settings.max_cpu_adapters,
        )
    )
