"""Following changes over real gRPC."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from graft.errors import GraftError, Reason, UnavailableError
from graft.registry.v1 import registry_service_pb2 as pb
from prometheus_client.parser import text_string_to_metric_families

from services.registry.server import RegistryServer
from tests.support.registry import (
    RegistryCalls,
    WatchCall,
    fetch_text,
    registry_calls,
    start_registry,
)

DEADLINE_S = 60


@asynccontextmanager
async def watching(
    calls: RegistryCalls, after: int = 0, parent: str = "namespaces/default"
) -> AsyncIterator[WatchCall]:
    """An open watch, cancelled at the end."""
    call = calls.stub.Watch(pb.WatchRequest(parent=parent, after_revision=after))
    try:
        yield call
    finally:
        call.cancel()


async def take(call: WatchCall, count: int) -> list[tuple[int, str]]:
    """The next messages as (revision, what changed or "bookmark")."""
    found: list[tuple[int, str]] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(found) < count:
            message = await call.read()
            assert isinstance(message, pb.WatchResponse), "the watch ended"
            found.append((message.revision, message.WhichOneof("change") or "bookmark"))
    return found


async def test_what_is_stored_is_replayed_then_bookmarked_then_followed(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    async with watching(calls) as call:
        assert await take(call, 5) == [
            (1, "base"), (2, "adapter"), (3, "version"), (4, "version"), (4, "bookmark"),
        ]  # fmt: skip
        alias = await calls.set_alias(versions[1].name)
        async with asyncio.timeout(DEADLINE_S):
            message = await call.read()
    assert isinstance(message, pb.WatchResponse)
    assert (message.revision, message.alias) == (5, alias)


async def test_events_carry_the_whole_resource(
    calls: RegistryCalls, base: pb.Base, versions: list[pb.Version]
) -> None:
    async with watching(calls) as call:
        messages = [await call.read() for _ in range(3)]
    assert all(isinstance(message, pb.WatchResponse) for message in messages)
    first, _, third = messages
    assert isinstance(first, pb.WatchResponse)
    assert isinstance(third, pb.WatchResponse)
    assert first.base == base
    assert third.version == versions[0]


async def test_a_watcher_that_comes_back_misses_nothing(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    async with watching(calls, after=4) as call:
        assert await take(call, 1) == [(4, "bookmark")]
        await calls.set_alias(versions[0].name)
        assert await take(call, 1) == [(5, "alias")]
    for _ in range(5):
        await calls.set_alias(versions[1].name)
        await calls.set_alias(versions[0].name)
    async with watching(calls, after=5) as call:
        revisions = [revision for revision, kind in await take(call, 11) if kind == "alias"]
    assert revisions == list(range(6, 16))


async def test_every_watcher_sees_every_move_in_order_while_many_move(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    async def follow(after: int) -> list[int]:
        async with watching(calls, after) as call:
            seen: list[int] = []
            while not seen or seen[-1] < 4 + 120:
                ((revision, kind),) = await take(call, 1)
                seen += [revision] if kind != "bookmark" else []
            return seen

    watchers = [asyncio.create_task(follow(after)) for after in (0, 2, 4, 4)]

    async def move(alias: str) -> None:
        for number in range(30):
            await calls.set_alias(versions[number % 2].name, alias=alias)

    await asyncio.gather(*(move(alias) for alias in "abcd"))
    for after, watcher in zip((0, 2, 4, 4), watchers, strict=True):
        assert await watcher == list(range(after + 1, 125))


async def test_a_namespace_hears_only_of_itself_but_is_told_how_far_it_is(
    calls: RegistryCalls, versions: list[pb.Version]
) -> None:
    async with watching(calls, parent="namespaces/other") as call:
        assert await take(call, 1) == [(4, "bookmark")]
    async with watching(calls, parent="namespaces/-") as call:
        assert len(await take(call, 5)) == 5


async def test_a_quiet_watch_gets_bookmarks(tmp_path: Path) -> None:
    server = await start_registry(tmp_path, bookmark_interval_s=0.02)
    async with registry_calls(server.address) as calls, watching(calls) as call:
        assert await take(call, 3) == [(0, "bookmark")] * 3
    await server.stop()


async def test_bookmarks_come_also_while_only_others_change(
    tmp_path: Path, tiny_base: Path
) -> None:
    server = await start_registry(tmp_path, bookmark_interval_s=0.2)
    async with registry_calls(server.address) as calls:
        await calls.create_base(tiny_base)
        async with watching(calls, after=1, parent="namespaces/other") as call:
            seen: list[tuple[int, str]] = []

            async def bookmarks() -> None:
                # As many as come before a slow machine has stored the first change, and one after it.
                while len(seen) < 3 or seen[-1][0] == 1:
                    seen.extend(await take(call, 1))

            hearing = asyncio.create_task(bookmarks())
            number = 0
            while not hearing.done():
                number += 1
                await calls.create_adapter(f"a{number}")
            await hearing
    await server.stop()
    assert {kind for _, kind in seen} == {"bookmark"}
    revisions = [revision for revision, _ in seen]
    assert revisions == sorted(revisions)
    assert revisions[-1] > 1


async def record_large_bases(calls: RegistryCalls, base: pb.Base, count: int) -> None:
    """Events of 1 MB each: more than the transport buffers for a watcher that does not read."""
    for number in range(count):
        large = pb.Base()
        large.CopyFrom(base)
        large.name = f"{base.name}-{number}"
        large.config_json = json.dumps({"model_type": "llama", "notes": "x" * 1_000_000})
        await calls.create_base_message(large)


async def test_a_watcher_that_does_not_read_keeps_nobody_waiting(
    calls: RegistryCalls, registry: RegistryServer, base: pb.Base
) -> None:
    async with registry_calls(registry.address) as other, watching(other) as slow:
        assert await take(slow, 1) == [(1, "base")]
        async with watching(calls) as fast:
            await record_large_bases(calls, base, 20)
            assert [kind for _, kind in await take(fast, 23)].count("base") == 21
        revisions = [revision for revision, kind in await take(slow, 22) if kind == "base"]
        assert revisions == list(range(3, 23))


async def test_a_revision_of_another_registry_means_list_again(calls: RegistryCalls) -> None:
    with pytest.raises(GraftError, match="List again") as raised:
        await calls.first_of_watch(after=99)
    assert raised.value.reason is Reason.REVISION_COMPACTED


async def test_watches_end_at_once_when_the_registry_stops(
    tmp_path: Path,
) -> None:
    server = await start_registry(tmp_path)
    async with registry_calls(server.address) as calls, watching(calls) as call:
        await take(call, 1)
        async with asyncio.timeout(DEADLINE_S):
            await server.stop()
        with pytest.raises(UnavailableError, match="stopping"):
            await calls.next_of(call)


async def test_a_watcher_that_does_not_read_does_not_hold_up_the_end(
    tmp_path: Path, tiny_base: Path
) -> None:
    server = await start_registry(tmp_path, drain_timeout_s=10 * DEADLINE_S)
    async with registry_calls(server.address) as calls:
        base = await calls.create_base(tiny_base)
        async with registry_calls(server.address) as other, watching(other) as slow:
            assert await take(slow, 1) == [(1, "base")]
            await record_large_bases(calls, base, 20)
            async with asyncio.timeout(DEADLINE_S):
                await server.stop()


async def test_what_was_stored_before_a_restart_is_replayed_after_it(
    tmp_path: Path, tiny_base: Path
) -> None:
    for number in range(3):
        server = await start_registry(tmp_path)
        async with registry_calls(server.address) as calls:
            await calls.create_base(tiny_base)
            for name in ("a", "b"):
                await calls.create_adapter(f"{name}{number}")
            async with watching(calls) as call:
                kinds = await take(call, 4 + 2 * number)
        await server.stop()
        adapters = [(revision, "adapter") for revision in range(2, 4 + 2 * number)]
        assert kinds == [(1, "base"), *adapters, (3 + 2 * number, "bookmark")]


async def test_metrics_tell_what_there_is_and_who_watches(
    calls: RegistryCalls, registry: RegistryServer, versions: list[pb.Version], adapters: list[Path]
) -> None:
    with pytest.raises(GraftError):
        await calls.commit(adapters[0], "sha256:" + "0" * 64)
    await calls.set_alias(versions[0].name)
    async with watching(calls, after=4) as call:
        # What a watch tells of has been counted.
        assert await take(call, 2) == [(5, "alias"), (5, "bookmark")]
        text = await asyncio.to_thread(fetch_text, f"http://{registry.metrics_address}/metrics")
    found = {
        sample.name + sample.labels.get("outcome", ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    assert found["graft_registry_versions"] == 2
    assert found["graft_registry_adapters"] == 1
    assert found["graft_registry_alias_moves_total"] == 1
    assert found["graft_registry_commits_totalcommitted"] == 2
    assert found["graft_registry_commits_totalrefused"] == 1
    assert found["graft_registry_watchers"] == 1
    assert found["graft_registry_watch_lag_events"] == 0
    assert found["graft_registry_blob_bytes"] > 10_000
