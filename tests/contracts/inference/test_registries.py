"""What every registry promises the inference service: the one in memory and the real one."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import graft
import pytest
from graft.channel import open_channel
from graft.digests import digest_file
from graft.errors import GraftError, Reason
from graft.names import ModelReference
from graft.registry.v1 import registry_service_pb2 as pb
from graft.rollout_messages import rollout_message
from graft.rollout_policy import Rollout, RolloutLimits, RolloutReport

from services.inference.bases.domain import BaseReference
from services.inference.domain import AdapterSeen, AdapterVersion, AliasSeen, Event
from services.inference.registry.base import Registry
from services.inference.registry.memory import MemoryRegistry
from services.inference.registry.remote import RemoteRegistry
from tests.support.models import make_adapter, make_base
from tests.support.registry import RegistryCalls, running_registry

BASE = "namespaces/default/bases/tiny"
BOT = "namespaces/default/adapters/bot"


class World:
    """A registry as the service sees it, and a hand that changes it."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    @abstractmethod
    async def create_adapter(self) -> None:
        """Makes BOT."""

    @abstractmethod
    async def commit(self, folder: Path) -> None:
        """Its next version."""

    @abstractmethod
    async def promote(self, number: int, alias: str = "production") -> None:
        """Moves an alias."""

    @abstractmethod
    async def roll_out(self, number: int, canary: int, percent: float, rollout: Rollout) -> None:
        """Gives a version a part of production's requests."""


class RegistryContract:
    """Tests of any registry; a subclass makes the world."""

    @pytest.fixture
    def folder(self, tiny_base: Path, tmp_path: Path) -> Path:
        """Files of a version."""
        return make_adapter(tmp_path / "adapter", tiny_base)

    async def test_the_base_is_recorded_with_its_fingerprint(
        self, world: World, tiny_base: Path
    ) -> None:
        first = await world.registry.record_base(tiny_base, BASE)
        assert first.startswith("sha256:")
        assert await world.registry.record_base(tiny_base, BASE) == first

    async def test_a_snapshot_and_the_watch_after_it_miss_nothing(
        self, world: World, folder: Path
    ) -> None:
        await world.create_adapter()
        before = await world.registry.snapshot()
        assert before.adapters == (AdapterSeen(BOT, BASE, 0),)
        await world.commit(folder)
        await world.promote(1)
        events = await take(world.registry.watch(before.revision), 2)
        version, alias = (event.change for event in events)
        assert isinstance(version, AdapterVersion)
        assert (version.adapter, version.number, version.rank) == (BOT, 1, 8)
        assert isinstance(alias, AliasSeen)
        assert (alias.alias, alias.version) == ("production", version.name)
        (again,) = await take(world.registry.watch(events[0].revision), 1)
        assert again.change == alias
        after = await world.registry.snapshot()
        assert after.revision == events[-1].revision
        assert after.adapters == (AdapterSeen(BOT, BASE, 1),)
        assert [(each.alias, each.version) for each in after.aliases] == [
            ("production", version.name)
        ]

    async def test_a_running_watch_hears_of_what_happens_later(self, world: World) -> None:
        revision = (await world.registry.snapshot()).revision
        waiting = asyncio.create_task(take(world.registry.watch(revision), 1))
        await world.create_adapter()
        (event,) = await waiting
        assert event.change == AdapterSeen(BOT, BASE, 0)

    async def test_references_are_found(
        self, world: World, tmp_path: Path, tiny_base: Path
    ) -> None:
        await world.create_adapter()
        for seed in (1, 2):
            await world.commit(make_adapter(tmp_path / str(seed), tiny_base, seed=seed))
        await world.promote(1, alias="old")

        async def number(reference: str) -> int:
            return (await world.registry.find(ModelReference.parse(reference))).number

        assert await number("bot:1") == 1
        assert await number("bot@old") == 1
        assert await number("bot") == 2
        await world.promote(1)
        assert await number("bot") == 1

    async def test_what_is_not_there_is_said_by_its_kind(self, world: World, folder: Path) -> None:
        await world.create_adapter()
        await world.commit(folder)
        for reference, reason in (
            ("nobody", Reason.ADAPTER_NOT_FOUND),
            ("bot@nowhere", Reason.ALIAS_NOT_FOUND),
            ("bot:7", Reason.VERSION_NOT_FOUND),
        ):
            with pytest.raises(GraftError) as caught:
                await world.registry.find(ModelReference.parse(reference))
            assert caught.value.reason is reason

    async def test_a_canary_is_seen_and_taken_back_from_the_state_that_was_judged_only(
        self, world: World, tmp_path: Path, tiny_base: Path
    ) -> None:
        await world.create_adapter()
        for seed in (1, 2):
            await world.commit(make_adapter(tmp_path / str(seed), tiny_base, seed=seed))
        await world.promote(1)
        limits = RolloutLimits(window_s=5.0, max_error_rate=0.1)
        await world.roll_out(1, 2, 5.0, Rollout(limits, steps_percent=(5.0, 100.0)))
        (seen,) = (await world.registry.snapshot()).aliases
        assert (seen.number, seen.canaries) == (1, ((2, 5.0),))
        assert seen.rollout == Rollout(limits, steps_percent=(5.0, 100.0))
        name = f"{BOT}/aliases/production"
        report = RolloutReport(2, "max_error_rate", 0.5, 0.1, None, 40, 5.0, "half of them failed")
        for stale in (
            world.registry.take_back(name, "stale", report),
            world.registry.advance(name, "stale", "well"),
        ):
            with pytest.raises(GraftError) as caught:
                await stale
            assert caught.value.reason is Reason.ALIAS_MOVED
        await world.registry.take_back(name, seen.etag, report)
        (after,) = (await world.registry.snapshot()).aliases
        assert (after.number, after.canaries, after.rollout) == (1, (), Rollout(limits))
        for gone in (
            world.registry.take_back(name, after.etag, report),
            world.registry.advance(name, after.etag, "well"),
        ):
            with pytest.raises(GraftError) as caught:
                await gone
            assert caught.value.reason is Reason.NO_ROLLOUT

    async def test_files_arrive_whole(self, world: World, folder: Path, tmp_path: Path) -> None:
        await world.create_adapter()
        await world.commit(folder)
        version = await world.registry.find(ModelReference.parse("bot"))
        assert {file.path for file in version.files} >= {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
        for file in version.files:
            target = tmp_path / f"fetched-{file.path}"
            await world.registry.fetch(file, target)
            assert digest_file(target) == file.digest


async def take(events: AsyncIterator[Event], count: int) -> list[Event]:
    """The next changes; bookmarks are skipped."""
    found: list[Event] = []
    async with asyncio.timeout(20):
        async for event in events:
            if event.change is not None:
                found.append(event)
            if len(found) == count:
                break
    return found


class MemoryWorld(World):
    """In this process."""

    registry: MemoryRegistry

    async def create_adapter(self) -> None:
        await self.registry.add_adapter(BOT, BASE)

    async def commit(self, folder: Path) -> None:
        await self.registry.add_version(BOT, folder)

    async def promote(self, number: int, alias: str = "production") -> None:
        await self.registry.set_alias(BOT, alias, number)

    async def roll_out(self, number: int, canary: int, percent: float, rollout: Rollout) -> None:
        await self.registry.set_alias(BOT, "production", number, {canary: percent}, rollout)


class TestMemoryRegistry(RegistryContract):
    """The one in memory."""

    @pytest.fixture
    def world(self) -> World:
        """Empty."""
        return MemoryWorld(MemoryRegistry())


class RemoteWorld(World):
    """The real service."""

    def __init__(self, registry: Registry, calls: RegistryCalls, fingerprint: str) -> None:
        super().__init__(registry)
        self._calls, self._fingerprint = calls, fingerprint

    async def create_adapter(self) -> None:
        await self._calls.create_adapter()

    async def commit(self, folder: Path) -> None:
        await self._calls.commit(folder, self._fingerprint)

    async def promote(self, number: int, alias: str = "production") -> None:
        await self._calls.set_alias(f"{BOT}/versions/{number}", alias)

    async def roll_out(self, number: int, canary: int, percent: float, rollout: Rollout) -> None:
        part = pb.Canary(version=f"{BOT}/versions/{canary}", weight_percent=percent)
        await self._calls.set_alias(
            f"{BOT}/versions/{number}", canaries=[part], rollout=rollout_message(rollout, BOT)
        )


class TestRemoteRegistry(RegistryContract):
    """The real one."""

    @pytest.fixture
    async def world(self, tiny_base: Path, tmp_path: Path) -> AsyncIterator[World]:
        """With its base recorded."""
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(running_registry(tmp_path / "registry"))
            channel = await stack.enter_async_context(open_channel(server.address))
            calls = RegistryCalls(channel)
            base = await calls.create_base(tiny_base)
            registry = RemoteRegistry(open_channel(server.address), "default")
            yield RemoteWorld(registry, calls, base.fingerprint.digest)
            await registry.close()


async def test_a_version_of_a_base_is_found_and_is_no_adapter(
    tmp_path: Path, tiny_base: Path
) -> None:
    async with (
        running_registry(tmp_path / "registry") as server,
        graft.Client(registry=server.address) as client,
    ):
        registry = RemoteRegistry(open_channel(server.address), "default")
        tiny = BaseReference("default", "tiny")
        await registry.record_base(tiny_base, BASE)
        with pytest.raises(GraftError, match="has no version") as caught:
            await registry.base_version(tiny)
        assert caught.value.reason is Reason.VERSION_NOT_FOUND
        pushed = [
            await client.base_versions.push(make_base(tmp_path / f"m{seed}", seed=seed), "tiny")
            for seed in (5, 6)
        ]
        assert (await registry.base_version(tiny)).name == pushed[1].name
        await client.adapters.promote(BASE, 1)
        found = await registry.base_version(tiny)
        assert (found.name, found.fingerprint) == (pushed[0].name, pushed[0].fingerprint)
        assert await registry.base_version(replace(tiny, alias="production")) == found
        assert await registry.base_version(replace(tiny, number=1)) == found
        with pytest.raises(GraftError) as caught:
            await registry.base_version(replace(tiny, number=9))
        assert caught.value.reason is Reason.VERSION_NOT_FOUND
        # Who serves adapters hears of neither: nobody may load a base as one.
        snapshot = await registry.snapshot()
        assert (snapshot.adapters, snapshot.aliases) == ((), ())
        await client.adapters.push("bot", make_adapter(tmp_path / "bot", tiny_base), base=tiny_base)
        changes = [event.change for event in await take(registry.watch(0), 2)]
        assert [type(change) for change in changes] == [AdapterSeen, AdapterVersion]
        await registry.close()


async def test_a_version_of_the_base_is_served_under_its_name_and_no_other_model(
    tmp_path: Path, tiny_base: Path
) -> None:
    merged, foreign = (make_base(tmp_path / f"m{seed}", seed=seed) for seed in (5, 6))
    async with (
        running_registry(tmp_path / "registry") as server,
        graft.Client(registry=server.address) as client,
    ):
        registry = RemoteRegistry(open_channel(server.address), "default")
        recorded = await registry.record_base(tiny_base, BASE)
        with pytest.raises(GraftError) as caught:
            await registry.record_base(merged, BASE)
        assert caught.value.reason is Reason.ALREADY_EXISTS
        version = await client.base_versions.push(merged, "tiny", method="merge")
        assert await registry.record_base(merged, BASE) == version.fingerprint != recorded
        with pytest.raises(GraftError) as caught:
            await registry.record_base(foreign, BASE)
        assert caught.value.reason is Reason.ALREADY_EXISTS
        await registry.close()
