"""Commits, reads, deletes, undeletes, uploads and collection at once, without any time of grace.

No version that is not purged may miss a blob, at no moment; and what somebody holds a lease on, and was
told is there, stays.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from graft.blobs import BlobClient, describe_file
from graft.channel import open_channel
from graft.client import Client
from graft.digests import digest_bytes
from graft.errors import GraftError, Reason
from sqlalchemy import exists, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.blobs.filesystem import FilesystemBlobStore
from services.registry.catalogue.blob_index import PRESENT
from services.registry.catalogue.database import Database
from services.registry.catalogue.leases import NewLease
from services.registry.catalogue.postgres import open_postgres
from services.registry.catalogue.sqlite import open_sqlite
from services.registry.catalogue.tables import blobs, version_files
from services.registry.pulse import Pulse
from tests.support.catalogue import BOT, version
from tests.support.collecting import RealClocks, Registry
from tests.support.processes import ServiceProcess

NOTHING = timedelta(0)
# A lease is renewed all the time, and lasts this long: a machine that is busy for a second must not end it. How
# leases end is tested with clocks that are set.
TTL_S = 60.0
# Only a defect takes that long.
DEADLINE_S = 120.0
CONTENTS = [b"content %d " % number * 50 for number in range(30)]
# What may be answered to somebody who holds no lease, or races with another.
EXPECTED = {Reason.DELETED, Reason.NOT_DELETED, Reason.UNAVAILABLE, Reason.VERSION_REFUSED}


class Load:
    """Everybody at once on some registries that share a catalogue and a store."""

    def __init__(self, registries: list[Registry], seed: int) -> None:
        self._registries, self._dice = registries, random.Random(seed)
        self._numbers = itertools.count(1)
        self._made: list[int] = []
        self.done = Counter[str]()

    async def run(self, seconds: float) -> None:
        """Runs all of them until the time is over and all have been at it; any failure ends it."""
        begun_s = time.monotonic()

        def is_over() -> bool:
            lasted_s = time.monotonic() - begun_s
            raced = self.done["removed"] > 0 and self.done["commit_with_lease"] > 0
            return lasted_s >= (seconds if raced else seconds + DEADLINE_S)

        works: list[Callable[[Registry], Awaitable[None]]] = [
            self.commit_with_lease,
            self.commit_with_lease,
            self.commit_without,
            self.end,
            self.end,
            self.end,
            self.read,
            self.check,
            self.collect,
        ]
        async with asyncio.TaskGroup() as group:
            for registry, work in itertools.product(self._registries, works):
                group.create_task(self._again(work, registry, is_over))

    async def _again(
        self,
        work: Callable[[Registry], Awaitable[None]],
        registry: Registry,
        is_over: Callable[[], bool],
    ) -> None:
        while not is_over():
            await work(registry)
            self.done[work.__name__] += 1
            await asyncio.sleep(self._dice.random() * 0.03)

    async def commit_with_lease(self, registry: Registry) -> None:
        """What the SDK does: hold, look, upload what is missing, look again, commit, let go."""
        data = self._dice.choice(CONTENTS)
        digest, number = digest_bytes(data), next(self._numbers)
        lease = await registry.leases.acquire(NewLease("sdk", "upload", (digest,), TTL_S))
        renewing = asyncio.create_task(self._renew(registry, lease.id))
        if not await registry.exists(digest):
            await upload(registry, data)
        for _ in range(self._dice.randrange(4)):
            await asyncio.sleep(0.01)
            assert await registry.exists(digest), f"{digest} disappeared under its lease"
        made = await registry.catalogue.commit_version(version(number, blob=digest), None)
        self._made.append(made.number)
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        await registry.leases.release(lease.id)

    async def _renew(self, registry: Registry, lease: str) -> None:
        while True:
            await asyncio.sleep(0.3)
            await registry.leases.renew(lease, ())

    async def commit_without(self, registry: Registry) -> None:
        """A client that holds nothing is told what is missing, and left with no half version."""
        data, number = self._dice.choice(CONTENTS), next(self._numbers)
        with expected():
            await registry.upload(data)
            # As long as admission takes.
            await asyncio.sleep(self._dice.random() * 0.05)
            wanted = version(number, blob=digest_bytes(data))
            made = await registry.catalogue.commit_version(wanted, None)
            self._made.append(made.number)

    async def end(self, registry: Registry) -> None:
        """Deletes, purges and brings back."""
        if not self._made:
            return
        name = f"{BOT}/versions/{self._dice.choice(self._made[-40:])}"
        with expected():
            await registry.lives.delete(name)
        with expected():
            again = self._dice.random() < 0.3
            await (registry.lives.undelete if again else registry.lives.purge)(name)

    async def read(self, registry: Registry) -> None:
        """Whoever reads a version gets all of its bytes, unless it was purged meanwhile."""
        if not self._made:
            return
        number = self._dice.choice(self._made)
        found = await registry.catalogue.get_version(BOT, number)
        if found.life.purge_time is not None:
            return
        digest = found.manifest.files[0].digest
        try:
            data = b"".join([chunk async for chunk in registry.objects.read(digest)])
        except GraftError:
            now = await registry.catalogue.get_version(BOT, number)
            assert now.life.purge_time is not None, f"version {number} misses {digest}"
        else:
            assert digest_bytes(data) == digest

    async def check(self, registry: Registry) -> None:
        """At no moment does a version that is not purged have a file that does not exist."""
        assert await broken(registry) == []

    async def collect(self, registry: Registry) -> None:
        """Collects, and is killed in the middle of it now and then."""
        task = asyncio.create_task(registry.collector.collect())
        if self._dice.random() < 0.3:
            await asyncio.sleep(self._dice.random() * 0.05)
            task.cancel()
        # Another one may be at it.
        with suppress(asyncio.CancelledError), expected():
            self.done["removed"] += (await task).removed_blobs


class expected:
    """Lets the errors pass that a client who holds nothing may be answered with."""

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: object, trace: object) -> bool:
        return isinstance(error, GraftError) and error.reason in EXPECTED


async def upload(registry: Registry, data: bytes) -> None:
    """Tries again as the SDK does: it was not told yet that the bytes are there."""
    until_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < until_s:
        try:
            await registry.upload(data)
            return
        except GraftError as error:
            if error.reason not in (Reason.UNAVAILABLE, Reason.UPLOAD_OFFSET):
                raise
        await asyncio.sleep(0.01)
    raise AssertionError("an upload under a lease does not get through")


async def broken(registry: Registry) -> list[tuple[int, str]]:
    """Files of versions that are not purged and do not exist."""

    async def read(connection: AsyncConnection) -> list[tuple[int, str]]:
        there = exists().where(blobs.c.digest == version_files.c.digest, blobs.c.state == PRESENT)
        query = select(version_files.c.number, version_files.c.digest).where(~there)
        return [(row.number, row.digest) for row in await connection.execute(query)]

    return await registry.database.read(read)


@asynccontextmanager
async def registries(
    kind: str, request: pytest.FixtureRequest, folder: Path
) -> AsyncIterator[list[Registry]]:
    """One on SQLite, three on PostgreSQL, with a folder of blobs between them."""
    async with AsyncExitStack() as stack:
        engines = []
        if kind == "sqlite":
            engines.append(await open_sqlite(folder / "registry.db"))
        else:
            url = request.getfixturevalue("postgres").create_database()
            engines += [await open_postgres(url) for _ in range(3)]
        made = []
        for engine in engines:
            database = Database(engine, Pulse())
            stack.push_async_callback(database.close)
            store = FilesystemBlobStore(folder / "blobs")
            made.append(Registry(database, store, NOTHING, NOTHING, clocks=RealClocks()))
        await made[0].begin()
        yield made


async def whole(registry: Registry) -> None:
    """At the end everything that is needed is there, and nothing else."""
    for lease in await registry.leases.seen():
        await registry.leases.release(lease.id)
    await registry.collector.collect()
    assert await broken(registry) == []

    async def needed(connection: AsyncConnection) -> set[str]:
        return set(await connection.scalars(select(version_files.c.digest)))

    wanted = await registry.database.read(needed)
    stored = {one.digest for one in await registry.store.stored()}
    assert stored == wanted
    for digest in wanted:
        data = b"".join([chunk async for chunk in registry.objects.read(digest)])
        assert digest_bytes(data) == digest


async def race(kind: str, request: pytest.FixtureRequest, folder: Path, seconds: float) -> None:
    async with registries(kind, request, folder) as made:
        load = Load(made, seed=int(seconds))
        await load.run(seconds)
        assert load.done["removed"] > 0, "the race was none: nothing was collected"
        assert load.done["commit_with_lease"] > 0
        await whole(made[0])


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_collection_never_takes_what_is_needed(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    await race(kind, request, tmp_path, seconds=5.0)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_collection_never_takes_what_is_needed_for_minutes(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    await race(kind, request, tmp_path, seconds=180.0)


@pytest.mark.soak  # In short at chosen moments: test_registry_kills.py.
async def test_a_registry_that_is_killed_in_a_collection_leaves_what_the_next_finishes(
    tmp_path: Path,
) -> None:
    """kill -9 between marking and removing, again and again: nothing needed goes, the rest does."""
    settings = {"collection_grace_s": "0", "collection_interval_s": "0"}
    files = []
    for number in range(60):
        path = tmp_path / str(number)
        path.write_bytes(b"%d" % number * 100)
        files.append((path, describe_file(tmp_path, path)))
    held = {file.digest for _, file in files[:10]}
    killed = 0
    for delay_s in (0.0, 0.002, 0.01, 0.03, 0.06):
        with ServiceProcess("registry", tmp_path / "registry", **settings) as process:
            await process.ready()
            async with (
                open_channel(process.address) as channel,
                Client(registry=process.address, timeout_s=60) as client,
                client.lease(sorted(held), ttl_s=600),
            ):
                blobs = BlobClient(channel)
                missing = await blobs.missing([file.digest for _, file in files])
                for path, file in files:
                    if file.digest in missing:
                        await blobs.upload(path, file)
                collecting = asyncio.create_task(client.operations.collect())
                await asyncio.sleep(delay_s)
                killed += not collecting.done()
                process.kill()
                await asyncio.gather(collecting, return_exceptions=True)
    assert killed, "no kill came in time"
    with ServiceProcess("registry", tmp_path / "registry", **settings) as process:
        await process.ready()
        async with (
            open_channel(process.address) as channel,
            Client(registry=process.address) as client,
        ):
            report = await client.operations.collect()
            assert report.kept_by_leases == 10, "leases outlive their registry and their holder"
            missing = await BlobClient(channel).missing([file.digest for _, file in files])
            assert missing == {file.digest for _, file in files[10:]}
    store = tmp_path / "registry" / "blobs" / "sha256"
    assert len([path for path in store.glob("??/*") if path.is_file()]) == 10
