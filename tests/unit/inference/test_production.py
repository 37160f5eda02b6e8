"""A replica that is told to waits for what its base's production aliases name before it gets traffic."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from graft.channel import open_channel
from graft.errors import GraftError, Reason

from services.inference.config import InferenceSettings
from services.inference.engines.base import EngineAdapter
from services.inference.engines.fake import FakeEngine
from services.inference.registry.memory import MemoryRegistry
from services.inference.server import InferenceServer
from tests.support.health import health
from tests.support.inference import BASE, FINGERPRINT, adapter_resource, write_adapter
from tests.support.waiting import eventually

OTHER_FINGERPRINT = "sha256:" + "e" * 64


class World:
    """A registry with adapters, each promoted, and replicas that require them."""

    def __init__(self, folder: Path) -> None:
        self.registry, self._folder = MemoryRegistry(FINGERPRINT), folder
        self._made = 0

    async def promote(
        self, adapter: str, *, rank: int = 8, base: str = BASE, fingerprint: str | None = None
    ) -> int:
        """Commits a version and points production at it; answers its number."""
        self._made += 1
        name = adapter_resource(adapter)
        if name not in self.registry.adapters:
            await self.registry.add_adapter(name, base)
        folder = write_adapter(self._folder / str(self._made), f"{adapter}-{self._made}", rank=rank)
        version = await self.registry.add_version(
            name, folder, rank=rank, base_fingerprint=fingerprint
        )
        await self.registry.set_alias(name, "production", version.number)
        return version.number

    @asynccontextmanager
    async def replica(self, engine: FakeEngine) -> AsyncIterator[Replica]:
        """Starts one, and does not wait for it."""
        server = InferenceServer(
            InferenceSettings(
                base=Path("tiny"),
                base_name="tiny",
                data_dir=self._folder / "node",
                require_production=True,
            ),
            engine=engine,
            registry=self.registry,
        )
        starting = asyncio.create_task(server.start())
        try:
            await eventually(lambda: server.address != "", "the port")
            yield Replica(server, starting)
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await server.stop()


class Replica:
    """One that starts, or has started."""

    def __init__(self, server: InferenceServer, starting: asyncio.Task[None]) -> None:
        self.server, self.starting = server, starting

    async def ready(self) -> bool:
        async with open_channel(self.server.address) as channel:
            return await health(channel, "readiness")

    async def started(self) -> bool:
        async with open_channel(self.server.address) as channel:
            return await health(channel, "startup")

    def held(self) -> set[str]:
        """Adapters on its engine."""
        assert self.server.residency is not None
        return {each.version.adapter_id for each in self.server.residency.current()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_it_is_ready_when_it_holds_all_of_them_and_not_before(world: World) -> None:
    for name in ("a", "b", "c"):
        await world.promote(name)
    await world.promote("foreign", base="namespaces/default/bases/other")
    engine = FakeEngine()
    engine.load_gate.clear()
    async with world.replica(engine) as replica:
        await eventually(lambda: engine.loading == 1, "a load")
        assert not await replica.ready()
        engine.load_gate.set()
        await asyncio.wait_for(replica.starting, 20)
        assert await replica.ready()
        assert replica.held() == {"a", "b", "c"}


async def test_what_has_no_slot_is_on_the_disk_and_is_what_moved_longest_ago(
    world: World, tmp_path: Path
) -> None:
    for number in range(6):
        await world.promote(f"bot-{number}")
    async with world.replica(FakeEngine(max_adapters=4)) as replica:
        await asyncio.wait_for(replica.starting, 20)
        assert replica.held() == {f"bot-{number}" for number in (2, 3, 4, 5)}
    kept = (tmp_path / "node" / "inference" / "adapters").glob("[!.]*/adapter_model.safetensors")
    assert {path.read_text().rpartition("-")[0] for path in kept} == {
        f"bot-{number}" for number in range(6)
    }


async def test_a_fresh_replica_is_not_ready_on_other_weights_until_its_aliases_moved_to_them(
    world: World,
) -> None:
    """What keeps the old replicas of a base while it is rolled to another revision."""
    await world.promote("bot", fingerprint=OTHER_FINGERPRINT)
    async with world.replica(FakeEngine()) as replica:
        await eventually(replica.started, "the start")
        assert not await replica.ready()
        assert not replica.starting.done()
        await world.promote("bot")
        await asyncio.wait_for(replica.starting, 20)
        assert await replica.ready()


async def test_a_rank_that_only_others_take_keeps_it_from_being_ready(world: World) -> None:
    await world.promote("bot", rank=16)
    async with world.replica(FakeEngine(max_rank=8)) as replica:
        await eventually(replica.started, "the start")
        assert not await replica.ready()


async def test_a_version_that_nobody_can_serve_does_not_keep_replicas_from_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.promote("good")
    await world.promote("bad")
    engine = FakeEngine()
    load = engine.load

    async def load_the_good(adapter: EngineAdapter) -> None:
        if adapter.name.startswith("bad@"):
            raise GraftError(Reason.ADAPTER_UNUSABLE, "bad tensors")
        await load(adapter)

    monkeypatch.setattr(engine, "load", load_the_good)
    async with world.replica(engine) as replica:
        await asyncio.wait_for(replica.starting, 20)
        assert await replica.ready()
        assert replica.held() == {"good"}


async def test_replicas_of_one_node_share_its_disk_by_digest(world: World) -> None:
    await world.promote("bot")
    async with world.replica(FakeEngine()) as first, world.replica(FakeEngine()) as second:
        await asyncio.wait_for(asyncio.gather(first.starting, second.starting), 20)
        assert first.held() == second.held() == {"bot"}
    assert len(world.registry.fetched) == len(set(world.registry.fetched))


async def test_what_is_missing_is_counted(world: World) -> None:
    await world.promote("bot", fingerprint=OTHER_FINGERPRINT)
    async with world.replica(FakeEngine()) as replica:

        def missing() -> float | None:
            return replica.server.metrics_registry.get_sample_value(
                "graft_inference_required_missing"
            )

        await eventually(lambda: missing() == 1.0, "the count")
        await world.promote("bot")
        await asyncio.wait_for(replica.starting, 20)
        assert missing() == 0.0


def test_settings_take_it_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_INFERENCE_REQUIRE_PRODUCTION", json.dumps(True))
    assert InferenceSettings(base=Path("tiny")).require_production
