"""What collection removes and what it leaves, on both databases."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from graft.digests import digest_bytes
from graft.errors import GraftError, Reason
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.blobs.memory import MemoryBlobStore
from services.registry.catalogue import tables
from services.registry.catalogue.blob_index import DELETING
from services.registry.catalogue.database import Database
from services.registry.catalogue.leases import NewLease
from services.registry.domain import Action
from tests.support.catalogue import BOT, move, version
from tests.support.collecting import DAY, Registry

FIRST = f"{BOT}/versions/1"


@pytest.fixture
async def registry(database: Database) -> Registry:
    """With the adapter bot; blobs stay for a day."""
    made = Registry(database)
    await made.begin()
    return made


async def purged(registry: Registry, data: bytes = b"weights") -> str:
    """A blob whose only version was purged; returns its digest."""
    made = await registry.commit(data, 1)
    name = f"{BOT}/versions/{made.number}"
    await registry.lives.delete(name)
    await registry.lives.purge(name)
    return made.manifest.files[0].digest


async def test_bytes_that_nothing_needs_go(registry: Registry) -> None:
    digest = await purged(registry)
    registry.clocks.ahead = 2 * DAY
    preview = await registry.collector.collect(dry_run=True)
    assert await registry.exists(digest), "a dry run removes nothing"
    registry.clocks.ahead = 4 * DAY
    report = await registry.collector.collect()
    assert (report.digests, report.removed_bytes) == ([digest], 7)
    assert (preview.digests, preview.removed_bytes) == (report.digests, report.removed_bytes)
    assert not await registry.stored(digest)
    assert not await registry.exists(digest)
    assert (await registry.collector.collect()).removed_blobs == 0


async def test_bytes_of_a_version_stay_also_while_it_can_be_undeleted(registry: Registry) -> None:
    made = await registry.commit(b"weights", 1)
    await registry.commit(b"other", 2)
    await registry.lives.delete(FIRST)
    registry.clocks.ahead = 29 * DAY
    report = await registry.collector.collect()
    assert (report.removed_blobs, report.kept.by_versions) == (0, 2)
    await registry.lives.undelete(FIRST)
    assert await registry.stored(made.manifest.files[0].digest)


async def test_shared_bytes_stay_for_the_version_that_is_left(registry: Registry) -> None:
    await registry.commit(b"weights", 1)
    await registry.commit(b"weights", 2)
    await registry.lives.delete(FIRST)
    await registry.lives.purge(FIRST)
    registry.clocks.ahead = 9 * DAY
    assert (await registry.collector.collect()).removed_blobs == 0


async def test_a_window_that_is_over_ends_in_a_purge_by_the_collector(registry: Registry) -> None:
    await registry.commit(b"weights", 1)
    await registry.lives.delete(FIRST)
    after = await registry.catalogue.revision()
    registry.clocks.ahead = 31 * DAY
    preview = await registry.collector.collect(dry_run=True)
    report = await registry.collector.collect()
    assert report.purged_versions == preview.purged_versions == [FIRST]
    assert report.removed_blobs == preview.removed_blobs == 1
    (event,) = await registry.catalogue.events(after, 10)
    assert event.action is Action.PURGED

    async def actor(connection: AsyncConnection) -> tuple[str, ...]:
        query = select(tables.audit_entries.c.actor, tables.audit_entries.c.method)
        query = query.order_by(tables.audit_entries.c.number.desc()).limit(1)
        return tuple((await connection.execute(query)).one())

    assert await registry.database.read(actor) == ("collector", "CollectGarbage")


async def test_an_adapter_whose_window_is_over_goes_with_its_versions(registry: Registry) -> None:
    await registry.commit(b"one", 1)
    await registry.commit(b"two", 2)
    await registry.lives.delete(BOT)
    registry.clocks.ahead = 31 * DAY
    report = await registry.collector.collect()
    assert report.purged_versions == [f"{BOT}/versions/{number}" for number in (1, 2)]
    assert report.removed_blobs == 2


async def test_what_an_alias_named_a_short_time_ago_is_not_purged(registry: Registry) -> None:
    await registry.commit(b"one", 1)
    await registry.commit(b"two", 2)
    await registry.catalogue.move_alias(move(1))
    await registry.catalogue.move_alias(move(2))
    await registry.lives.delete(FIRST)
    registry.clocks.ahead = 31 * DAY
    assert (await registry.collector.collect()).purged_versions == []
    registry.clocks.ahead = 91 * DAY
    assert (await registry.collector.collect()).purged_versions == [FIRST]


async def test_a_leased_version_is_not_purged_by_itself(registry: Registry) -> None:
    await registry.commit(b"weights", 1)
    await registry.lives.delete(FIRST)
    lease = await registry.leases.acquire(NewLease("h", "train", (FIRST,), 60.0))
    registry.clocks.ahead = 31 * DAY
    assert (await registry.collector.collect()).purged_versions == []
    await registry.leases.release(lease.id)
    assert (await registry.collector.collect()).purged_versions == [FIRST]


async def test_a_version_purged_by_hand_keeps_its_bytes_for_who_holds_it(
    registry: Registry,
) -> None:
    made = await registry.commit(b"weights", 1)
    digest = made.manifest.files[0].digest
    lease = await registry.leases.acquire(NewLease("h", "train", (FIRST,), 60.0))
    await registry.lives.delete(FIRST)
    await registry.lives.purge(FIRST)
    await registry.leases.renew(lease.id, (FIRST,))
    registry.clocks.ahead = 31 * DAY
    report = await registry.collector.collect()
    assert (report.removed_blobs, report.kept.by_leases) == (0, 1)
    await registry.leases.release(lease.id)
    assert (await registry.collector.collect()).digests == [digest]


async def test_bytes_that_somebody_asked_for_stay_for_the_grace_time(registry: Registry) -> None:
    digest = await registry.upload(b"to be committed")
    report = await registry.collector.collect()
    assert (report.removed_blobs, report.kept.by_age) == (0, 1)
    registry.clocks.ahead = DAY + timedelta(hours=1)
    assert (await registry.collector.collect()).digests == [digest]


@pytest.mark.parametrize("jump", [3650 * DAY, -3650 * DAY])
async def test_a_wall_clock_that_jumps_ends_no_lease(registry: Registry, jump: timedelta) -> None:
    digest = await registry.upload(b"weights")
    await registry.leases.acquire(NewLease("h", "upload", (digest,), 60.0))
    await registry.collector.collect()
    registry.clocks.ahead = jump
    for _ in range(5):
        registry.clocks.steady_s += 11.9
        await registry.collector.collect()
    assert await registry.stored(digest)
    registry.clocks.ahead = 2 * DAY
    registry.clocks.steady_s += 11.9
    assert (await registry.collector.collect()).digests == [digest]


async def test_a_collector_that_was_started_now_has_watched_nobody(
    registry: Registry, database: Database
) -> None:
    digest = await registry.upload(b"weights")
    await registry.leases.acquire(NewLease("h", "upload", (digest,), 1.0))
    registry.clocks.steady_s += 100
    await registry.collector.collect()
    another = Registry(database, registry.store, grace=timedelta(0))
    for _ in range(3):
        assert (await another.collector.collect()).removed_blobs == 0
    assert await registry.stored(digest)


async def test_time_in_which_nobody_looked_does_not_count(database: Database) -> None:
    registry = Registry(database, longest_gap_s=30.0)
    lease = await registry.leases.acquire(
        NewLease("h", "upload", (digest_bytes(b"to come"),), 60.0)
    )
    await registry.collector.watch_leases()
    registry.clocks.steady_s += 3600
    assert await registry.collector.watch_leases() == 0, "the database was away for an hour"
    for _ in range(2):
        registry.clocks.steady_s += 20
        assert await registry.collector.watch_leases() == 0
    await registry.leases.renew(lease.id, ())
    for _ in range(3):
        registry.clocks.steady_s += 20
        assert await registry.collector.watch_leases() == 0
    registry.clocks.steady_s += 20
    assert await registry.collector.watch_leases() == 1


async def test_what_a_crash_left_marked_is_finished(registry: Registry) -> None:
    digest = await registry.upload(b"weights")
    await registry.database.change(
        lambda change: change.connection.execute(update(tables.blobs).values(state=DELETING))
    )
    assert not await registry.exists(digest)
    with pytest.raises(GraftError, match="not kept any more"):
        await registry.catalogue.commit_version(version(1, blob=digest), None)
    assert (await registry.collector.collect()).digests == [digest]
    assert not await registry.stored(digest)


async def test_an_upload_rescues_what_is_marked(registry: Registry) -> None:
    digest = await registry.upload(b"weights")
    await registry.database.change(
        lambda change: change.connection.execute(update(tables.blobs).values(state=DELETING))
    )
    assert await registry.upload(b"weights") == digest
    assert await registry.exists(digest)
    assert (await registry.collector.collect()).removed_blobs == 0
    await registry.commit(b"weights", 1)


async def test_an_upload_begins_anew_where_the_bytes_are_gone_already(registry: Registry) -> None:
    digest = await registry.upload(b"weights")
    await registry.database.change(
        lambda change: change.connection.execute(update(tables.blobs).values(state=DELETING))
    )
    await registry.store.delete(digest)
    assert await registry.upload(b"weights") == digest
    assert await registry.exists(digest)
    assert await registry.stored(digest)


async def test_bytes_without_a_row_go_when_they_are_old(database: Database) -> None:
    store = MemoryBlobStore()
    old = Registry(database, store, orphans=timedelta(0))
    upload = await store.begin_upload(digest_bytes(b"orphan"), 6)
    assert upload is not None
    await upload.append(0, b"orphan")
    await upload.finish()
    await upload.close()
    assert (await Registry(database, store).collector.collect()).removed_blobs == 0
    assert (await old.collector.collect(dry_run=True)).digests == [digest_bytes(b"orphan")]
    assert (await old.collector.collect()).digests == [digest_bytes(b"orphan")]
    assert not await old.stored(digest_bytes(b"orphan"))


async def test_an_upload_that_nobody_goes_on_with_goes(database: Database) -> None:
    registry = Registry(database, orphans=timedelta(0))
    upload = await registry.objects.begin_upload(digest_bytes(b"begun"), 5)
    assert upload is not None
    await upload.append(0, b"be")
    assert (await registry.collector.collect()).removed_uploads == 0, "somebody is at it"
    await upload.close()
    assert (await registry.collector.collect()).removed_uploads == 1


async def test_one_collects_at_a_time(registry: Registry, database: Database) -> None:
    for number in range(20):
        await registry.upload(b"%d" % number)
    registry.clocks.ahead = 2 * DAY
    done = await asyncio.gather(
        *(registry.collector.collect() for _ in range(3)), return_exceptions=True
    )
    refused = [one for one in done if isinstance(one, GraftError)]
    assert [one.reason for one in refused] == [Reason.UNAVAILABLE] * 2
    assert (await registry.collector.collect()).removed_blobs == 0


async def test_a_purge_that_a_crash_cut_is_finished(registry: Registry) -> None:
    made = await registry.commit(b"weights", 1)
    await registry.lives.delete(BOT)
    now_us = 1
    await registry.database.change(
        lambda change: change.connection.execute(
            update(tables.adapters).values(purge_time_us=now_us)
        )
    )
    registry.clocks.ahead = 2 * DAY
    report = await registry.collector.collect()
    assert report.digests == [made.manifest.files[0].digest]
    assert (await registry.catalogue.get_version(BOT, 1)).life.purge_time is not None
