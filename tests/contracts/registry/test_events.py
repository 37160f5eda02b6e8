"""Following changes: filters, and what happens when old events are not kept any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import pytest
from graft.errors import GraftError, Reason

from services.registry.catalogue.base import Catalogue, EventFilter, RequestKey
from services.registry.pulse import Pulse
from services.registry.retention import Compaction, Retention
from services.registry.watch import Bookmark, ChangeFeed
from tests.support.catalogue import BASE, BOT, adapter, move, version
from tests.support.waiting import eventually

DEADLINE_S = 60
EVERYTHING = EventFilter()


def soon() -> datetime:
    """A time after all that was stored so far."""
    return datetime.now(UTC) + timedelta(seconds=1)


async def refused(call: Awaitable[object]) -> bool:
    """Whether a call fails."""
    try:
        await call
    except GraftError:
        return True
    return False


@pytest.fixture
def pulse() -> Pulse:
    """Tells the feed that there may be something new, as a listener does."""
    return Pulse()


@pytest.fixture
async def feed(pulse: Pulse, filled: Catalogue) -> AsyncIterator[ChangeFeed]:
    """Follows what is filled."""
    feed = ChangeFeed(filled, pulse, bookmark_interval_s=60, seen=lambda _: None)
    await feed.start()
    yield feed
    await feed.close()


async def test_a_watch_tells_only_of_what_was_asked_for(filled: Catalogue) -> None:
    await filled.create_adapter(adapter("other"), None)
    await filled.move_alias(move(1))
    asked = {
        EventFilter(parent=BOT): [2, 3, 4, 6],
        EventFilter(parent=BASE.name): [1],
        EventFilter(kinds=frozenset({"alias", "base"})): [1, 6],
        EventFilter("default", kinds=frozenset({"version"})): [3, 4],
        EventFilter("elsewhere"): [],
    }
    for which, revisions in asked.items():
        assert [one.revision for one in await filled.events(0, 100, which)] == revisions


async def test_replay_and_live_changes_are_filtered_alike(
    feed: ChangeFeed, pulse: Pulse, filled: Catalogue
) -> None:
    async def take(which: EventFilter, until: int) -> list[int]:
        found: list[int] = []
        async with aclosing(feed.follow(which, 0)) as news:
            async for one in news:
                if not isinstance(one, Bookmark):
                    found.append(one.revision)
                    if one.revision == until:
                        break
        return found

    async with asyncio.timeout(DEADLINE_S):
        which = EventFilter(parent=BOT, kinds=frozenset({"alias"}))
        alias = asyncio.create_task(take(which, 7))
        all_of_it = asyncio.create_task(take(EventFilter(parent=BOT), 7))
        await asyncio.sleep(0)
        for change in (filled.move_alias(move(1)), filled.create_adapter(adapter("other"), None)):
            await change
            pulse.fire()
        await filled.move_alias(move(2))
        pulse.fire()
        assert (await alias, await all_of_it) == ([5, 7], [2, 3, 4, 5, 7])


async def test_what_is_past_its_retention_goes_and_the_rest_stays(filled: Catalogue) -> None:
    assert await filled.compact(datetime.now(UTC) - timedelta(days=1), keep=0) == 0
    assert await filled.compact(soon(), keep=3) == 1
    assert await filled.compact(soon(), keep=3) == 1
    assert [one.revision for one in await filled.events(1, 100)] == [2, 3, 4]
    assert await filled.compact(soon(), keep=0) == 4
    await filled.move_alias(move(1))
    assert [one.revision for one in await filled.events(4, 100)] == [5]


async def test_a_watch_from_before_what_is_kept_is_told_to_list_again(
    feed: ChangeFeed, filled: Catalogue
) -> None:
    await filled.compact(soon(), keep=2)
    with pytest.raises(GraftError, match="the oldest event is 3") as raised:
        async with aclosing(feed.follow(EVERYTHING, 1)) as news:
            await anext(news)
    assert raised.value.reason is Reason.REVISION_COMPACTED
    assert raised.value.metadata["oldest_revision"] == "3"
    assert "List again" in raised.value.next_step
    async with aclosing(feed.follow(EVERYTHING, 2)) as news:
        assert [(await anext(news)).revision for _ in range(3)] == [3, 4, 4]


async def test_a_watcher_that_is_overtaken_is_told_and_skips_nothing(
    feed: ChangeFeed, pulse: Pulse, filled: Catalogue
) -> None:
    await asyncio.gather(*(filled.commit_version(version(n), None) for n in range(3, 403)))
    pulse.fire()
    seen: list[int] = []

    async def follow_slowly() -> None:
        async with aclosing(feed.follow(EVERYTHING, 0)) as news:
            seen.append((await anext(news)).revision)
            await filled.compact(soon(), keep=0)
            async for one in news:
                seen.append(one.revision)

    with pytest.raises(GraftError, match="not kept any more") as raised:
        await follow_slowly()
    assert raised.value.reason is Reason.REVISION_COMPACTED
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) < 404


async def test_a_request_id_is_remembered_for_the_retention(filled: Catalogue) -> None:
    key = RequestKey("r", "hash")
    await filled.create_adapter(adapter("once"), key)
    await filled.compact(datetime.now(UTC) - timedelta(days=1), keep=0)
    assert (await filled.create_adapter(adapter("once"), key)).name.endswith("once")
    await filled.compact(soon(), keep=0)
    with pytest.raises(GraftError, match="exists already"):
        await filled.create_adapter(adapter("once"), key)


async def test_compaction_goes_on_by_itself(filled: Catalogue) -> None:
    compaction = Compaction(filled, Retention(age_s=1e-6, events=1, interval_s=0.01))
    await compaction.start()

    async def is_compacted() -> bool:
        return len(await filled.events(3, 10)) == 1 and await refused(filled.events(2, 1))

    await eventually(is_compacted)
    await compaction.close()
    assert [one.revision for one in await filled.events(3, 10)] == [4]
