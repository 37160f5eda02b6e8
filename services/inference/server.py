"""Composition root of the inference service: the only place that constructs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from graft.channel import open_channel
from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from graft.keys import PublicKey, load_trusted
from graft.signatures import SignaturePolicy
from prometheus_client import CollectorRegistry

from services.common.server import LIVENESS, READINESS, GrpcServer
from services.common.tracing import Tracing
from services.common.tracing_setup import otlp_endpoint, tracing_from_environment
from services.inference.attestation.attestor import Attestor
from services.inference.bases.change import Change, SwitchOptions
from services.inference.bases.house import House
from services.inference.bases.memory import Room
from services.inference.bases.place import Measure, Place, Places, check_engine, engine_room
from services.inference.bases.rpcs import BaseRpcs
from services.inference.bases.state import SwitchedTo
from services.inference.bases.store import BaseStore
from services.inference.bases.switching import Switcher
from services.inference.blends.base import Blender
from services.inference.blends.fake import FakeBlender
from services.inference.blends.process import BlendingOptions, ProcessBlender
from services.inference.cache import AdapterCache
from services.inference.config import InferenceSettings
from services.inference.engines.base import Engine
from services.inference.engines.beside import with_second
from services.inference.engines.fake import FakeEngine
from services.inference.engines.metrics import EngineCollector
from services.inference.engines.vllm import VllmEngine
from services.inference.engines.vllm_arguments import VllmOptions
from services.inference.gate import Gate
from services.inference.http.door import DoorOptions, HttpDoor
from services.inference.metrics import InferenceMetrics, MetricsOptions
from services.inference.registry.base import Registry
from services.inference.registry.memory import MemoryRegistry
from services.inference.registry.remote import RemoteRegistry
from services.inference.residency import Residency
from services.inference.serving import Serving
from services.inference.shared import Shared
from services.inference.starting import StartingServicer
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
        blender: Blender | None = None,
        tracing: Tracing | None = None,
        make: Callable[[InferenceSettings], Engine] | None = None,
        measure: Measure | None = None,
    ) -> None:
        make = make or make_engine
        self._settings = settings
        trusted = _trusted(settings)
        self.metrics_registry = CollectorRegistry()
        self._tracing = tracing or tracing_from_environment("inference")
        self._metrics = make_metrics(settings, self.metrics_registry, self._tracing)
        self._given, self._make = engine, make
        EngineCollector(lambda: self._engine, self.metrics_registry)
        self._metrics.engine_up.set_function(lambda: bool(self._engine and self._engine.healthy))
        self.registry = registry or make_registry(settings)
        self.grpc = GrpcServer(settings, [SERVICE], self.metrics_registry, self._tracing)
        self._front = StartingServicer()
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(
            self._front, self.grpc.grpc
        )
        self._cache = AdapterCache(
            cache_dir(settings), self.registry, self._metrics, settings.cache_max_bytes
        )
        self._shared = Shared(
            self.registry,
            self._cache,
            self._metrics,
            Trust(self.registry, settings.signature_policy, trusted),
            Attestor.from_file(settings.attestation_key),
            blender or make_blender(settings),
            self.grpc.set_serving,
            self.grpc.set_alive,
        )
        self._house = House(self._serve, self._shared, self._front, self.metrics_registry)
        self._bases = BaseStore(
            settings.base_cache_dir or settings.data_dir / "inference" / "bases",
            self.registry,
            settings.namespace,
            settings.base_cache_max_bytes,
        )
        self._places = Places(settings, self._bases, self.registry)
        self._switched_to = SwitchedTo(settings.data_dir / "inference", self._places.setting)
        real = settings.engine == "vllm" and engine is None
        change = Change(
            self._house,
            self._places,
            self._switched_to,
            check_engine if real else lambda _: None,
            measure or (engine_room if real else lambda _: Room(0, 0)),
            SwitchOptions(
                settings.base_drain_timeout_s,
                settings.base_start_timeout_s,
                settings.engine_restart_delay_s,
                settings.engine_restart_max_s,
                settings.engine_restart_limit,
                settings.base_switch,
            ),
        )
        switches = self._metrics.base_switches
        self._switcher = Switcher(
            self._house,
            change,
            settings.base_switch,
            lambda strategy, outcome: switches.labels(strategy, outcome).inc(),
        )
        self._front.bases = BaseRpcs(self._house, self._switcher)
        self.door = self._make_door(settings)

    def _make_door(self, settings: InferenceSettings) -> HttpDoor | None:
        if settings.http_listen is None:
            return None
        return HttpDoor(
            DoorOptions(
                settings.http_listen,
                settings.http_api_keys,
                settings.http_max_body_bytes,
                settings.drain_timeout_s,
                settings.stalled_after_s,
            ),
            lambda: self.serving,
            self.metrics_registry,
            self._tracing,
            lambda: self.grpc.says(READINESS),
            lambda: self.grpc.says(LIVENESS),
        )

    @property
    def http_address(self) -> str:
        """URL of the HTTP door, once started; empty where there is none."""
        return "" if self.door is None else self.door.address

    @property
    def address(self) -> str:
        """host:port of gRPC, once started."""
        return self.grpc.address

    @property
    def serving(self) -> Serving:
        """The base that is served; another after a switch."""
        assert self._house.current is not None, "it has not started"
        return self._house.current

    @property
    def engine(self) -> Engine:
        """The engine of the base that is served."""
        return self.serving.engine

    @property
    def _engine(self) -> Engine | None:
        return None if self._house.current is None else self._house.current.engine

    @property
    def gate(self) -> Gate:
        """What every request passes before its engine."""
        return self.serving.gate

    @property
    def residency(self) -> Residency | None:
        """What is on the engine, once started."""
        return None if self._house.current is None else self._house.current.residency

    async def start(self) -> None:
        """Engine, the registry's state, calls, the required models: whoever is told ready gets answers.

        It listens from the beginning, to say that it is alive and starting.

        Raises:
            GraftError: NOT_A_MODEL, ALREADY_EXISTS when the registry knows another base by this name.
        """
        await self.grpc.listen()
        if self.door is not None:
            await self.door.listen(self.grpc.certificates)
            self.grpc.more_addresses["http_address"] = self.door.address
        first = self._house.build(await self._places.first(self._switched_to.read()))
        self._house.first(first)
        await first.start()
        self._house.present(first)
        if self.door is not None:
            self.door.begin()
        await self.grpc.set_started()
        await first.settle()
        await self.grpc.start()
        await self._house.open()

    def _serve(self, place: Place, shared: Shared) -> Serving:
        """A Serving for a base, not started: the first one, or what the base is switched to."""
        given, self._given = self._given, None
        return Serving(place.settings, given or self._make(place.settings), shared, place)

    async def stop(self) -> None:
        """Drains calls in flight, then ends everything that was started, in reverse."""
        try:
            await self._stop_serving()
        finally:
            if self._house.current is not None:
                await self._house.current.stop()
            # Not before: an engine may read a folder for as long as it lives.
            self._cache.close()
            self._bases.close()
            await self.registry.close()
            await asyncio.to_thread(self._tracing.close)

    async def _stop_serving(self) -> None:
        await self.grpc.refuse()
        if self.door is not None:
            self.door.refuse()
        await self._switcher.stop()
        serving = self._house.current
        if serving is not None:
            await serving.refuse()
        await asyncio.gather(*self._drains())
        await self._switcher.close()
        if serving is not None:
            await serving.close()

    def _drains(self) -> Iterator[Awaitable[None]]:
        if self.grpc.address:
            yield self.grpc.drain()
        if self.door is not None:
            yield self.door.drain()


def _trusted(settings: InferenceSettings) -> tuple[PublicKey, ...]:
    found = load_trusted(settings.trusted_keys)
    if settings.signature_policy is SignaturePolicy.REQUIRE and not found:
        raise GraftError(
            Reason.INVALID_REQUEST,
            "GRAFT_INFERENCE_SIGNATURE_POLICY is require, and no key is trusted",
            next_step='Name public keys, for example GRAFT_INFERENCE_TRUSTED_KEYS=["/keys/ci.pub"].',
        )
    return found


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


def make_blender(settings: InferenceSettings) -> Blender:
    """What computes the blends that requests name."""
    if settings.engine == "fake":
        return FakeBlender()
    return ProcessBlender(
        BlendingOptions(
            settings.blend_timeout_s, settings.blend_memory_bytes, settings.blend_max_waiting
        )
    )


def make_engine(settings: InferenceSettings) -> Engine:
    """The configured engine."""
    if settings.engine == "fake":
        return FakeEngine(
            settings.max_adapters,
            settings.max_lora_rank,
            max_cpu_adapters=settings.max_cpu_adapters or 0,
        )
    first = VllmEngine(
        VllmOptions(
            base=settings.base,
            max_adapters=settings.max_adapters,
            max_lora_rank=settings.max_lora_rank,
            lora_page_rank=settings.lora_page_rank,
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
            tool_parser=settings.tool_parser,
            soft_prompts=settings.soft_prompts,
        )
    )
    return with_second(settings, first)
