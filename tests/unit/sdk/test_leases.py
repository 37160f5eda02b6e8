"""LeaseKeeper against a real registry: it holds, renews, follows what is needed, and never hinders."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import graft
import pytest
from graft.channel import open_channel
from graft.digests import digest_bytes
from graft.leases import LeaseKeeper

from services.registry.server import RegistryServer
from tests.support.registry import running_registry
from tests.support.waiting import eventually

ONE, TWO = digest_bytes(b"one"), digest_bytes(b"two")


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[RegistryServer]:
    """An empty registry."""
    async with running_registry(tmp_path / "registry") as server:
        yield server


@pytest.fixture
async def client(registry: RegistryServer) -> AsyncIterator[graft.Client]:
    """A client of it."""
    async with graft.Client(registry=registry.address, actor="ann") as made:
        yield made


async def held(client: graft.Client) -> list[tuple[str, ...]]:
    return [one.targets for one in await client.operations.leases()]


async def test_a_client_holds_what_it_names_until_the_block_ends(client: graft.Client) -> None:
    async with client.lease([ONE, TWO], purpose="backup"):
        (lease,) = await client.operations.leases()
        assert (lease.holder, lease.purpose) == ("ann", "backup")
        assert lease.targets == tuple(sorted([ONE, TWO]))

    async def let_go() -> bool:
        return await held(client) == []

    # Nobody waits longer for a registry than to tell it.
    await eventually(let_go, "the end of the lease")


async def test_what_is_held_follows_what_is_needed(
    registry: RegistryServer, client: graft.Client
) -> None:
    needed: set[str] = set()
    async with (
        open_channel(registry.address) as channel,
        LeaseKeeper(channel, "h", "serve", lambda: needed) as keeper,
    ):
        assert await held(client) == [], "who needs nothing holds nothing"
        for now in ({ONE}, {ONE, TWO}, {TWO}, set[str]()):
            needed = now
            keeper.changed()
            wanted = [tuple(sorted(now))] if now else []

            async def follows(wanted: list[tuple[str, ...]] = wanted) -> bool:
                return await held(client) == wanted

            await eventually(follows, f"holding {wanted}")


async def test_a_lease_that_was_taken_away_is_acquired_again(
    registry: RegistryServer, client: graft.Client
) -> None:
    async with (
        open_channel(registry.address) as channel,
        LeaseKeeper(channel, "h", "serve", [ONE]) as keeper,
    ):
        first = keeper.name
        async with LeaseKeeper(channel, "other", "serve", [TWO]) as other:
            other.name, keeper.name = keeper.name, other.name
        keeper.changed()

        async def again() -> bool:
            return await held(client) == [(ONE,)] and keeper.name != first

        await eventually(again, "the lease being acquired again")


async def test_one_target_that_is_gone_does_not_lose_the_others(
    registry: RegistryServer, client: graft.Client
) -> None:
    gone = "namespaces/default/adapters/bot/versions/7"
    async with (
        open_channel(registry.address) as channel,
        LeaseKeeper(channel, "h", "serve", [gone, ONE]),
    ):
        assert await held(client) == [(ONE,)]


async def test_a_registry_that_is_away_is_told_of_once_and_hinders_nothing(
    tmp_path: Path,
) -> None:
    told: list[str] = []
    async with running_registry(tmp_path / "registry") as server:
        address = server.address
    async with (
        open_channel(address) as channel,
        LeaseKeeper(channel, "h", "serve", [ONE], warn=told.append) as keeper,
    ):
        keeper.changed()
    assert len(told) == 1
    assert "is not held" in told[0]


async def test_a_lease_outlives_the_registry_that_gave_it(tmp_path: Path) -> None:
    async with running_registry(tmp_path / "registry") as first:
        address = first.address
        channel = open_channel(address)
        keeper = LeaseKeeper(channel, "h", "serve", [ONE])
        await keeper.start()
        name = keeper.name
    async with running_registry(tmp_path / "registry", listen=address):
        keeper.changed()
        async with graft.Client(registry=address) as client:

            async def renewed() -> bool:
                found = await client.operations.leases()
                return [one.name for one in found if one.expire_time > one.create_time] == [name]

            await eventually(renewed, "the renewal")
        await keeper.close()
    await channel.close(None)
