"""Leases, on both databases."""

from __future__ import annotations

from dataclasses import replace

import pytest
from graft.errors import GraftError, Reason

from services.registry.catalogue.base import Catalogue
from services.registry.catalogue.database import Database
from services.registry.catalogue.leases import Lease, Leases, NewLease
from tests.support.catalogue import BLOB, BOT

FIRST, SECOND = f"{BOT}/versions/1", f"{BOT}/versions/2"
NEW = NewLease("inference/host-7", "serve", (FIRST, BLOB), 60.0)


@pytest.fixture
def leases(database: Database, filled: Catalogue) -> Leases:
    """Of a catalogue with two versions of bot."""
    return Leases(database)


async def test_a_lease_says_who_needs_what_for_how_long(leases: Leases) -> None:
    lease = await leases.acquire(NEW)
    assert (lease.holder, lease.purpose, lease.ttl_s) == ("inference/host-7", "serve", 60.0)
    assert lease.targets == (FIRST, BLOB)
    assert (lease.expire_time - lease.create_time).total_seconds() == 60
    assert (await leases.list(10, None)).items == [lease]


async def test_a_repeated_request_is_one_lease(leases: Leases) -> None:
    asked = replace(NEW, request_id="r1")
    first = await leases.acquire(asked)
    assert await leases.acquire(asked) == first
    assert (await leases.acquire(replace(asked, holder="another"))).id != first.id
    with pytest.raises(GraftError, match="'r1'") as raised:
        await leases.acquire(replace(asked, purpose="train"))
    assert raised.value.reason is Reason.REQUEST_ID_REUSED


async def test_a_renewal_may_change_what_is_held(leases: Leases) -> None:
    lease = await leases.acquire(NEW)
    assert (await leases.renew(lease.id, ())).targets == lease.targets
    assert (await leases.renew(lease.id, (SECOND,))).targets == (SECOND,)
    assert (await leases.list(10, None, SECOND)).items[0].id == lease.id
    assert (await leases.list(10, None, FIRST)).items == []


async def test_what_does_not_exist_cannot_be_held_but_bytes_that_are_to_come_can(
    leases: Leases,
) -> None:
    with pytest.raises(GraftError, match="versions/9") as raised:
        await leases.acquire(replace(NEW, targets=(f"{BOT}/versions/9",)))
    assert raised.value.reason is Reason.VERSION_NOT_FOUND
    to_come = "sha256:" + "0" * 64
    assert (await leases.acquire(replace(NEW, targets=(to_come,)))).targets == (to_come,)


async def test_a_released_lease_is_gone_and_released_again_in_peace(leases: Leases) -> None:
    lease = await leases.acquire(NEW)
    await leases.release(lease.id)
    await leases.release(lease.id)
    with pytest.raises(GraftError, match=lease.id) as raised:
        await leases.renew(lease.id, ())
    assert raised.value.reason is Reason.LEASE_NOT_FOUND
    assert "FindMissing" in raised.value.next_step


async def test_a_lease_that_was_renewed_meanwhile_does_not_end(leases: Leases) -> None:
    lease = await leases.acquire(NEW)
    seen = await leases.seen()
    await leases.renew(lease.id, ())
    assert await leases.expire(seen) == 0
    assert await leases.expire(await leases.seen()) == 1
    assert await leases.seen() == []


async def test_pages_of_leases_follow_each_other_oldest_first(leases: Leases) -> None:
    made = [await leases.acquire(replace(NEW, holder=f"h{number}")) for number in range(5)]
    found: list[Lease] = []
    after = None
    while True:
        page = await leases.list(2, after)
        found += page.items
        after = page.next_key
        if after is None:
            break
    assert found == made
