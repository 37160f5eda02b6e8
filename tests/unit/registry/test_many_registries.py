"""Two registry processes on one PostgreSQL database and one folder of blobs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from graft.errors import GraftError, Reason
from graft.registry.v1 import registry_service_pb2 as pb

from tests.support.postgres import PostgresServer
from tests.support.processes import ServiceProcess
from tests.support.registry import RegistryCalls, WatchCall, registry_calls
from tests.support.waiting import eventually

DEADLINE_S = 60


@pytest.fixture
async def both(tmp_path: Path, postgres: PostgresServer) -> AsyncIterator[list[RegistryCalls]]:
    """Calls to each of two registries."""
    shared = {"database": postgres.create_database(), "blobs_dir": str(tmp_path / "blobs")}
    async with AsyncExitStack() as stack:
        # Both at once: each finds an empty database and an empty folder.
        processes = [
            stack.enter_context(ServiceProcess("registry", tmp_path / name, **shared))
            for name in ("one", "two")
        ]
        await asyncio.gather(*(process.ready() for process in processes))
        yield [
            await stack.enter_async_context(registry_calls(process.address))
            for process in processes
        ]
        for process in processes:
            assert await process.stop() in (0, -signal.SIGTERM)


@pytest.fixture
async def versions(
    both: list[RegistryCalls], tiny_base: Path, adapters: list[Path]
) -> list[pb.Version]:
    """Two versions of "bot", each committed by another registry."""
    base = await both[0].create_base(tiny_base)
    await both[1].create_adapter()
    return [
        await calls.commit(folder, base.fingerprint.digest)
        for calls, folder in zip(both, adapters[:2], strict=True)
    ]


async def follow(calls: RegistryCalls, until: int) -> list[int]:
    """Revisions of all events that a registry tells of, up to one."""
    call: WatchCall = calls.stub.Watch(pb.WatchRequest(parent="namespaces/-"))
    seen: list[int] = []
    async with asyncio.timeout(DEADLINE_S):
        while not seen or seen[-1] < until:
            message = await calls.next_of(call)
            seen += [message.revision] if message.WhichOneof("change") else []
    call.cancel()
    return seen


async def test_what_one_stored_the_other_has_at_once(
    both: list[RegistryCalls], versions: list[pb.Version]
) -> None:
    for calls in both:
        assert [await calls.get_version(one.name) for one in versions] == versions
        for version in versions:
            assert (
                await calls.blobs.missing([one.digest for one in version.manifest.files]) == set()
            )


async def test_both_promote_at_once_and_watchers_of_both_see_one_order(
    both: list[RegistryCalls], versions: list[pb.Version]
) -> None:
    watchers = [asyncio.create_task(follow(calls, until=44)) for calls in both]
    won = [0, 0]
    for round_ in range(40):
        now, to = versions[(round_ + 1) % 2].name, versions[round_ % 2].name
        expected = now if round_ else ""
        told = await asyncio.gather(
            *(calls.set_alias(to, expected_version=expected) for calls in both),
            return_exceptions=True,
        )
        lost = [one for one in told if isinstance(one, GraftError)]
        assert [one.reason for one in lost] == [Reason.ALIAS_MOVED]
        won[told.index(lost[0]) - 1] += 1
    assert sum(won) == 40
    for watcher in watchers:
        assert await watcher == list(range(1, 45))


@pytest.mark.parametrize("crash", [False, True])
async def test_watchers_go_on_after_a_restart_of_the_database_and_miss_nothing(
    both: list[RegistryCalls],
    versions: list[pb.Version],
    postgres: PostgresServer,
    crash: bool,
) -> None:
    watchers = [asyncio.create_task(follow(calls, until=4 + 12)) for calls in both]
    for number in range(12):
        if number in (4, 8):
            await asyncio.to_thread(postgres.restart, crash)
        await both[number % 2].set_alias(versions[number % 2].name)
    for watcher in watchers:
        assert await watcher == list(range(1, 17))


async def test_while_the_database_is_away_calls_fail_clearly_and_then_work_again(
    both: list[RegistryCalls], versions: list[pb.Version], postgres: PostgresServer
) -> None:
    watch = both[1].stub.Watch(pb.WatchRequest(parent="namespaces/-", after_revision=4))
    assert (await both[1].next_of(watch)).WhichOneof("change") is None
    await asyncio.to_thread(postgres.stop)
    try:
        for call in (both[0].list_adapters(), both[0].set_alias(versions[0].name)):
            with pytest.raises(GraftError, match="nothing was changed") as raised:
                await call
            assert raised.value.reason is Reason.UNAVAILABLE
    finally:
        await asyncio.to_thread(postgres.start)

    async def promoted() -> bool:
        try:
            return (await both[0].set_alias(versions[0].name)).revision == 5
        except GraftError:
            return False

    await eventually(promoted, within_s=DEADLINE_S)
    async with asyncio.timeout(DEADLINE_S):
        assert (await both[1].next_of(watch)).revision == 5
    watch.cancel()
