"""A real registry and endpoints whose adapters behave as a test says, for what judges answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import graft
import grpc
from graft.channel import open_channel
from graft.digests import digest_file
from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1 import rollout_pb2
from graft.registry.v1 import registry_service_pb2
from graft.rollout_policy import RolloutReport

from services.inference.engines.acting import Act, ActingEngine
from services.inference.registry.remote import RemoteRegistry
from tests.support.inference import RunningInference, question, start_inference
from tests.support.registry import RegistryCalls, registry_calls, running_registry
from tests.support.waiting import eventually

CANARY = rollout_pb2.ROLLOUT_PART_CANARY
STABLE = rollout_pb2.ROLLOUT_PART_STABLE
KEYS = [f"user-{number}" for number in range(60)]
ALIAS = "namespaces/default/adapters/bot/aliases/production"


class AwayRegistry(RemoteRegistry):
    """A registry that can be out of reach for what takes a canary back."""

    away = False
    tries = 0

    async def take_back(self, alias: str, etag: str, report: RolloutReport) -> None:
        self.tries += 1
        if self.away:
            raise GraftError(Reason.UNAVAILABLE, "the registry is away", next_step="Wait.")
        await super().take_back(alias, etag, report)


@dataclass(slots=True)
class Traffic:
    """Who was answered by which part, and what went wrong."""

    parts: dict[str, set[int]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    by_canary: int = 0
    asked: int = 0


@dataclass(slots=True)
class World:
    """A registry with "bot" in several versions, and endpoints that serve it."""

    client: graft.Client
    calls: RegistryCalls
    replicas: Sequence[RunningInference]
    registries: Sequence[AwayRegistry]
    canary_number: int = 2

    async def state(self, replica: int = 0) -> rollout_pb2.RolloutStatus | None:
        """The rollout of bot@production on an endpoint."""
        stub = self.replicas[replica].stub
        answer = await stub.ListRollouts(rollout_pb2.ListRolloutsRequest())
        return next(iter(answer.rollouts), None)

    async def canary_is(self, state: rollout_pb2.CanaryState.ValueType) -> None:
        """Waits until every endpoint says so of the first canary."""

        async def now() -> bool:
            found = [await self.state(number) for number in range(len(self.replicas))]
            return all(one and one.canaries and one.canaries[0].state == state for one in found)

        await eventually(now, rollout_pb2.CanaryState.Name(state), within_s=60)

    async def alias(self) -> registry_service_pb2.Alias:
        """bot@production as the registry has it."""
        request = registry_service_pb2.GetAliasRequest(name=ALIAS)
        return await self.calls.stub.GetAlias(request)

    async def taken_back(self) -> None:
        """Waits until the registry and every endpoint have no canary any more."""

        async def now() -> bool:
            states = [await self.state(number) for number in range(len(self.replicas))]
            return not (await self.alias()).canaries and not any(states)

        await eventually(now, "taking it back", within_s=60)

    async def ask(
        self,
        traffic: Traffic,
        key: str,
        replica: int = 0,
        *,
        stream: bool = True,
        **sampling: object,
    ) -> None:
        """One request of somebody."""
        request = question("bot", max_tokens=120)
        request.session_key = key
        stub, traffic.asked = self.replicas[replica].stub, traffic.asked + 1
        first: pb.GenerateResponse | None = None
        try:
            if not stream:
                first = await stub.Generate(request)
            else:
                async for part in stub.StreamGenerate(request):
                    first = first or part
        except grpc.aio.AioRpcError:
            traffic.failed += 1
        if first is not None:
            which = first.provenance.rollout_part
            traffic.parts.setdefault(key, set()).add(which)
            traffic.versions[key] = int(first.provenance.version.rpartition("/")[2])
            traffic.by_canary += which == CANARY

    async def round(self, traffic: Traffic, *, stream: bool = True) -> None:
        """Everybody asks once, those of each endpoint at once."""
        replicas = len(self.replicas)
        await asyncio.gather(
            *(
                self.ask(traffic, key, number % replicas, stream=stream)
                for number, key in enumerate(KEYS)
            )
        )

    async def flow(self, traffic: Traffic, until: asyncio.Event) -> None:
        """Rounds until told to stop."""
        while not until.is_set():
            await self.round(traffic)
            await asyncio.sleep(0.02)


@asynccontextmanager
async def rollout_world(
    folder: Path,
    base: Path,
    adapters: Sequence[Path],
    acts: Mapping[int, Act],
    *,
    replicas: int = 1,
    **settings: Any,
) -> AsyncIterator[World]:
    """Version 1 is production; the others are there. acts are by version number."""
    digests = [digest_file(one / "adapter_model.safetensors") for one in adapters]
    by_digest = {digests[number - 1]: act for number, act in acts.items()}
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(running_registry(folder / "registry"))
        calls = await stack.enter_async_context(registry_calls(registry.address))
        recorded = await calls.create_base(base)
        await calls.create_adapter()
        for one in adapters:
            await calls.commit(one, recorded.fingerprint.digest)
        await calls.set_alias_named(ALIAS, "namespaces/default/adapters/bot/versions/1")
        running, registries = [], []
        for number in range(replicas):
            remote = AwayRegistry(open_channel(registry.address), "default")
            registries.append(remote)
            running.append(
                await stack.enter_async_context(
                    start_inference(
                        folder / f"replica-{number}",
                        engine=ActingEngine(by_digest),
                        registry=remote,
                        base=base,
                        **settings,
                    )
                )
            )
        client = await stack.enter_async_context(
            graft.Client(registry=registry.address, inference=running[0].server.address)
        )
        yield World(client, calls, running, registries)
