"""Load on a registry over gRPC: lookups at a fixed rate, commits, listings, watches and races."""

from __future__ import annotations

import asyncio
import gc
import time
import uuid
from collections.abc import Sequence
from statistics import median, quantiles

import grpc
from graft.channel import open_channel
from graft.registry.v1 import registry_service_pb2 as pb
from graft.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from bench.harness import Measurement


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that percent of all are not above."""
    return quantiles(values, n=100, method="inclusive")[percent - 1]


async def lookups(
    address: str, names: Sequence[str], rate_hz: float, seconds: float
) -> Measurement:
    """GetVersion at a fixed rate, whether or not the answers keep up.

    A latency counts from when its request was due, so that a registry that stalls cannot hide it. All
    names were asked for before.

    Returns:
        p50_ms, p99_ms and max_ms of the latencies, and answered_hz.
    """
    latencies_ms: list[float] = []
    async with open_channel(address) as channel:
        stub = RegistryServiceStub(channel)

        async def ask(name: str, due_s: float) -> None:
            await stub.GetVersion(pb.GetVersionRequest(name=name))
            latencies_ms.append((time.perf_counter() - due_s) * 1000)

        for _ in range(3):
            await asyncio.gather(*(ask(name, time.perf_counter()) for name in names))
        latencies_ms.clear()
        # What this client's own collector stops is not the registry's latency.
        gc.collect()
        gc.disable()
        begin_s, asked = time.perf_counter(), []
        for number in range(int(rate_hz * seconds)):
            due_s = begin_s + number / rate_hz
            ahead_s = due_s - time.perf_counter()
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
            asked.append(asyncio.create_task(ask(names[number * 7 % len(names)], due_s)))
        await asyncio.gather(*asked)
        took_s = time.perf_counter() - begin_s
        gc.enable()
    return {
        "p50_ms": median(latencies_ms),
        "p99_ms": percentile(latencies_ms, 99),
        "max_ms": max(latencies_ms),
        "answered_hz": len(latencies_ms) / took_s,
    }


async def commits(
    address: str,
    request: pb.CommitVersionRequest,
    parents: Sequence[str],
    writers: int,
    seconds: float,
) -> Measurement:
    """Commits of verified small versions, each another manifest, by so many writers at once.

    Returns:
        commits_per_s, and p50_ms and p99_ms of one commit.
    """
    latencies_ms: list[float] = []
    async with open_channel(address) as channel:
        stub = RegistryServiceStub(channel)
        until_s = time.perf_counter() + seconds

        async def write(parent: str) -> None:
            while time.perf_counter() < until_s:
                one = pb.CommitVersionRequest()
                one.CopyFrom(request)
                one.parent, one.request_id = parent, uuid.uuid4().hex
                one.lineage.seed = uuid.uuid4().int >> 66
                begin_s = time.perf_counter()
                await stub.CommitVersion(one)
                latencies_ms.append((time.perf_counter() - begin_s) * 1000)

        begin_s = time.perf_counter()
        await asyncio.gather(*(write(parents[n % len(parents)]) for n in range(writers)))
        took_s = time.perf_counter() - begin_s
    return {
        "commits_per_s": len(latencies_ms) / took_s,
        "p50_ms": median(latencies_ms),
        "p99_ms": percentile(latencies_ms, 99),
    }


async def pages(address: str, parent: str, page_size: int) -> Measurement:
    """Walks a listing to its end.

    Returns:
        first_ms and last_ms: medians of the first and the last tenth of the pages; ratio, and pages.
    """
    took_ms: list[float] = []
    async with open_channel(address) as channel:
        stub, token = RegistryServiceStub(channel), ""
        while True:
            begin_s = time.perf_counter()
            answer = await stub.ListVersions(
                pb.ListVersionsRequest(parent=parent, page_size=page_size, page_token=token)
            )
            # The last page may hold less.
            if answer.next_page_token:
                took_ms.append((time.perf_counter() - begin_s) * 1000)
            token = answer.next_page_token
            if not token:
                break
    tenth = max(1, len(took_ms) // 10)
    first, last = median(took_ms[1 : tenth + 1]), median(took_ms[-tenth:])
    return {"first_ms": first, "last_ms": last, "ratio": last / first, "pages": len(took_ms)}


async def alias_moves(
    address: str, alias: str, versions: Sequence[str], watchers: int, moves: int
) -> Measurement:
    """Moves an alias, and sees when each of the watchers has heard of it.

    Returns:
        Over all moves, from before the call to the watcher's receipt: p50_ms, p99_ms; last_ms is the
        median over the moves of the slowest watcher.
    """
    begun_s: dict[str, float] = {}
    heard_ms: dict[str, list[float]] = {}
    async with open_channel(address) as channel:
        stub = RegistryServiceStub(channel)
        namespace = "/".join(alias.split("/")[:2])
        revision = (
            await stub.ListAliases(pb.ListAliasesRequest(parent=f"{namespace}/adapters/-"))
        ).revision
        ready, all_heard = asyncio.Semaphore(0), asyncio.Event()

        async def watch() -> None:
            call = stub.Watch(pb.WatchRequest(parent=namespace, after_revision=revision))
            async for news in call:
                if news.WhichOneof("change") is None:
                    ready.release()
                elif news.alias.reason in begun_s:
                    took_ms = (time.perf_counter() - begun_s[news.alias.reason]) * 1000
                    heard_ms.setdefault(news.alias.reason, []).append(took_ms)
                    if len(heard_ms[news.alias.reason]) == watchers:
                        all_heard.set()

        watching = [asyncio.create_task(watch()) for _ in range(watchers)]
        for _ in range(watchers):
            await ready.acquire()
        for number in range(moves):
            reason = f"move {number}"
            begun_s[reason] = time.perf_counter()
            request = pb.SetAliasRequest(
                name=alias, version=versions[(number + 1) % len(versions)], reason=reason
            )
            await stub.SetAlias(request)
            await all_heard.wait()
            all_heard.clear()
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
    every = [one for some in heard_ms.values() for one in some]
    return {
        "p50_ms": median(every),
        "p99_ms": percentile(every, 99),
        "last_ms": median([max(some) for some in heard_ms.values()]),
    }


async def races(
    address: str, alias: str, versions: Sequence[str], writers: int, rounds: int
) -> Measurement:
    """In each round all writers expect the same etag and move the alias: who wins?

    Returns:
        rounds, and how many of them had exactly one winner: single_winner_rounds.
    """
    single = 0
    async with open_channel(address) as channel:
        stub = RegistryServiceStub(channel)
        now = await stub.SetAlias(pb.SetAliasRequest(name=alias, version=versions[0]))

        async def write(version: str, number: int) -> bool:
            request = pb.SetAliasRequest(
                name=alias, version=version, etag=now.etag, reason=f"writer {number}"
            )
            try:
                await stub.SetAlias(request)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.ABORTED:
                    raise
                return False
            return True

        for _ in range(rounds):
            others = [one for one in versions if one != now.version]
            won = await asyncio.gather(
                *(write(others[number % len(others)], number) for number in range(writers))
            )
            single += sum(won) == 1
            now = await stub.GetAlias(pb.GetAliasRequest(name=alias))
    return {"rounds": rounds, "single_winner_rounds": single}
