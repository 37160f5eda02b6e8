"""What every registry promises the inference service: the one in memory and the real one."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import graft
import pytest
from graft.channel import open_channel
from graft.digests import digest_file
from graft.errors import GraftError, Reason
from graft.names import ModelReference

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
