"""An inference service for tests: the fake engine and an in-memory registry unless told otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from graft.channel import open_channel
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub

from services.common.tracing import Tracing
from services.inference.bases.place import Measure
from services.inference.blends.base import Blender
from services.inference.blends.fake import FakeBlender
from services.inference.config import InferenceSettings
from services.inference.domain import AdapterVersion
from services.inference.engines.base import Engine
from services.inference.engines.fake import FakeEngine
from services.inference.registry.base import Registry
from services.inference.registry.memory import MemoryRegistry
from services.inference.server import InferenceServer

if TYPE_CHECKING:
    from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceAsyncStub

BASE = "namespaces/default/bases/tiny"
FINGERPRINT = "sha256:" + "f" * 64


def adapter_resource(name: str) -> str:
    """Its name in the default namespace."""
    return f"namespaces/default/adapters/{name}"


def write_adapter(folder: Path, content: str, *, rank: int = 8) -> Path:
    """Files that are enough for the fake engine; content decides what it answers."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(f'{{"peft_type": "LORA", "r": {rank}}}')
    (folder / "adapter_model.safetensors").write_text(content)
    return folder


@dataclass(slots=True)
class RunningInference:
    """A service that serves, a stub to it, and what stands behind it."""

    server: InferenceServer
    engine: Engine
    registry: Registry
    channel: grpc.aio.Channel
    stub: InferenceServiceAsyncStub
    folder: Path

    @property
    def fake(self) -> FakeEngine:
        """The engine, where it is the fake."""
        assert isinstance(self.engine, FakeEngine)
        return self.engine

    @property
    def memory(self) -> MemoryRegistry:
        """The registry, where it is in memory."""
        assert isinstance(self.registry, MemoryRegistry)
        return self.registry

    async def publish(self, adapter: str, *contents: str, rank: int = 8) -> list[AdapterVersion]:
        """Creates an adapter if need be and commits a version for each content."""
        name = adapter_resource(adapter)
        if name not in self.memory.adapters:
            await self.memory.add_adapter(name, BASE)
        versions = []
        for content in contents:
            folder = write_adapter(self.folder / f"{adapter}-{content}", content, rank=rank)
            versions.append(await self.memory.add_version(name, folder, rank=rank))
        return versions

    async def promote(self, adapter: str, number: int, alias: str = "production") -> None:
        """Points an alias at a version."""
        await self.memory.set_alias(adapter_resource(adapter), alias, number)

    async def ask(
        self, model: str, prompt: str = "hello", **sampling: object
    ) -> pb.GenerateResponse:
        """One unary answer."""
        return await self.stub.Generate(question(model, prompt, **sampling))


def question(model: str, prompt: str = "hello", **sampling: object) -> pb.GenerateRequest:
    """A greedy request of 8 tokens unless told otherwise."""
    params = {"temperature": 0.0, "max_tokens": 8, **sampling}
    return pb.GenerateRequest(
        model=model,
        prompt=prompt,
        sampling=pb.SamplingParams(**params),  # type: ignore[arg-type]
    )


@asynccontextmanager
async def start_inference(
    folder: Path,
    *,
    engine: Engine | None = None,
    registry: Registry | None = None,
    base: Path = Path("tiny"),
    tracing: Tracing | None = None,
    blender: Blender | None = None,
    make: Callable[[InferenceSettings], Engine] | None = None,
    measure: Measure | None = None,
    **settings: object,
) -> AsyncIterator[RunningInference]:
    """Starts a service on a free port and stops it at the end; make and measure are for changes of the base."""
    engine = FakeEngine() if engine is None else engine
    registry = MemoryRegistry(FINGERPRINT) if registry is None else registry
    if blender is None and isinstance(engine, FakeEngine):
        blender = FakeBlender()
    values = {"base": base, "base_name": "tiny", "data_dir": folder / "data", **settings}
    server = InferenceServer(
        InferenceSettings(**values),  # type: ignore[arg-type]
        engine=engine,
        registry=registry,
        blender=blender,
        tracing=tracing,
        make=make,
        measure=measure,
    )
    await server.start()
    channel = open_channel(server.address)
    stub: InferenceServiceAsyncStub = InferenceServiceStub(channel)
    try:
        yield RunningInference(server, engine, registry, channel, stub, folder)
    finally:
        await channel.close(None)
        await server.stop()
