"""What bench.capacity does to the real services: many watchers, many registries, many jobs, many requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from statistics import median
from typing import TYPE_CHECKING

import grpc
import psutil
from graft.channel import open_channel
from graft.inference.v1 import inference_service_pb2 as inference_pb
from graft.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from graft.names import alias_name, version_name
from graft.registry.v1 import registry_service_pb2 as pb
from graft.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from graft.trainer.v1 import job_spec_pb2
from graft.trainer.v1 import trainer_service_pb2 as trainer_pb
from graft.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub

from bench.harness import Measurement
from services.inference.registry.remote import RemoteRegistry
from services.registry.catalogue.base import EventFilter
from services.registry.catalogue.database import Database
from services.registry.catalogue.listen import Listener
from services.registry.catalogue.postgres import open_postgres
from services.registry.catalogue.sql import SqlCatalogue
from services.registry.pulse import Pulse
from services.registry.watch import ChangeFeed

if TYPE_CHECKING:
    from graft.trainer.v1.trainer_service_pb2_grpc import TrainerServiceAsyncStub

_MIB = 1024 * 1024
_STREAMS_PER_CHANNEL = 50
_NAMESPACE = "namespaces/default"


def adapter(number: int) -> str:
    """Name of one of the many adapters."""
    return f"{_NAMESPACE}/adapters/bot-{number:05}"


class Used:
    """CPU time and memory that a process took between two looks."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._begin_s, self._cpu_s = time.perf_counter(), self._cpu()

    def _cpu(self) -> float:
        spent = self._process.cpu_times()
        return float(spent.user + spent.system)

    @property
    def cpu_s(self) -> float:
        """CPU seconds since the beginning."""
        return self._cpu() - self._cpu_s

    @property
    def cores(self) -> float:
        """CPU seconds per second since the beginning."""
        return self.cpu_s / (time.perf_counter() - self._begin_s)

    @property
    def memory_mib(self) -> float:
        """Resident memory now."""
        return float(self._process.memory_info().rss) / _MIB


async def snapshots(address: str, times: int) -> Measurement:
    """What an endpoint asks when it starts: all aliases and all adapters of its namespace.

    Returns:
        snapshot_s, the median; aliases_kib: size of the one answer with all aliases.
    """
    took_s: list[float] = []
    async with open_channel(address) as channel:
        registry = RemoteRegistry(channel, "default")
        for _ in range(times):
            begin_s = time.perf_counter()
            await registry.snapshot()
            took_s.append(time.perf_counter() - begin_s)
        stub = RegistryServiceStub(channel)
        answer = await stub.ListAliases(pb.ListAliasesRequest(parent=f"{_NAMESPACE}/adapters/-"))
    return {"snapshot_s": median(took_s), "aliases_kib": answer.ByteSize() / 1024}


async def moves_to_watchers(address: str, pid: int, watchers: int, moves: int) -> Measurement:
    """Moves an alias again and again; so many endpoints watch over as few connections as they can.

    Returns:
        last_ms: from before the call until the last has heard, median; registry_cpu_ms of one move;
        memory_kib_per_watcher.
    """
    heard, all_heard, ready = 0, asyncio.Event(), asyncio.Semaphore(0)
    before_mib = Used(pid).memory_mib
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(open_channel(address))
            for _ in range(-(-watchers // _STREAMS_PER_CHANNEL))
        ]
        stub = RegistryServiceStub(channels[0])
        listed = await stub.ListAliases(pb.ListAliasesRequest(parent=f"{adapter(0)}"))

        async def watch(channel: grpc.aio.Channel) -> None:
            nonlocal heard
            request = pb.WatchRequest(parent=_NAMESPACE, after_revision=listed.revision)
            async for news in RegistryServiceStub(channel).Watch(request):
                if news.WhichOneof("change") is None:
                    ready.release()
                    continue
                heard += 1
                if heard == watchers:
                    all_heard.set()

        tasks = [
            asyncio.create_task(watch(channels[number % len(channels)]))
            for number in range(watchers)
        ]
        for _ in tasks:
            await ready.acquire()
        used, took_ms = Used(pid), list[float]()
        per_watcher_kib = (used.memory_mib - before_mib) * 1024 / watchers
        for number in range(moves):
            heard = 0
            all_heard.clear()
            begin_s = time.perf_counter()
            await stub.SetAlias(_move(number))
            await asyncio.wait_for(all_heard.wait(), 120)
            took_ms.append((time.perf_counter() - begin_s) * 1000)
        cpu_ms = used.cpu_s * 1000 / moves
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "last_ms": median(took_ms),
        "registry_cpu_ms_per_move": cpu_ms,
        "memory_kib_per_watcher": per_watcher_kib,
    }


def _move(number: int) -> pb.SetAliasRequest:
    return pb.SetAliasRequest(
        name=alias_name(adapter(0), "production"), version=version_name(adapter(0), 2 - number % 2)
    )


async def many_registries(url: str, registries: int, moves: int, address: str) -> Measurement:
    """So many registries' watchers on one PostgreSQL: each hears NOTIFY and reads the events.

    Only their feeds are here, in this one process; the move is made by a registry that serves.

    Returns:
        last_ms: until the last feed has told it, median; connections that they hold open.
    """
    async with AsyncExitStack() as stack:
        heard, all_heard, tasks = 0, asyncio.Event(), list[asyncio.Task[None]]()

        async def follow(feed: ChangeFeed, after: int) -> None:
            nonlocal heard
            which = EventFilter(namespace="default")
            async with aclosing(feed.follow(which, after)) as news:
                async for _ in _events(news):
                    heard += 1
                    if heard == registries:
                        all_heard.set()

        for _ in range(registries):
            changed = Pulse()
            database = Database(await open_postgres(url, 1), changed)
            catalogue = SqlCatalogue(database)
            stack.push_async_callback(catalogue.close)
            listener = Listener(url, changed)
            await listener.start()
            stack.push_async_callback(listener.close)
            feed = ChangeFeed(catalogue, changed, 3600.0, lambda _: None)
            await feed.start()
            stack.push_async_callback(feed.close)
            tasks.append(asyncio.create_task(follow(feed, await catalogue.revision())))
        await asyncio.sleep(1.0)
        took_ms: list[float] = []
        async with open_channel(address) as channel:
            stub = RegistryServiceStub(channel)
            for number in range(moves):
                heard = 0
                all_heard.clear()
                begin_s = time.perf_counter()
                await stub.SetAlias(_move(number))
                await asyncio.wait_for(all_heard.wait(), 120)
                took_ms.append((time.perf_counter() - begin_s) * 1000)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {"last_ms": median(took_ms), "connections": 2.0 * registries}


async def _events(news: AsyncIterator[object]) -> AsyncIterator[object]:
    async for one in news:
        # Bookmarks are for who watches over gRPC.
        if type(one).__name__ == "Event":
            yield one


async def jobs(address: str, pid: int, count: int, seconds: float) -> Measurement:
    """Submits so many jobs at once, waits until all run, and looks on.

    Returns:
        submit_s; running_s: from then until all ran; cores: what the trainer and its scripted workers
        take while they run; memory_mib.
    """
    async with open_channel(address) as channel:
        stub: TrainerServiceAsyncStub = TrainerServiceStub(channel)
        begin_s = time.perf_counter()
        await asyncio.gather(*(stub.CreateJob(_job(number)) for number in range(count)))
        submitted_s = time.perf_counter()
        await _until(lambda: _all_run(stub, count))
        running_s = time.perf_counter() - submitted_s
        used = Used(pid)
        await asyncio.sleep(seconds)
        return {
            "submit_s": submitted_s - begin_s,
            "all_running_after_s": running_s,
            "cores": used.cores,
            "memory_mib": used.memory_mib,
        }


def _job(number: int) -> trainer_pb.CreateJobRequest:
    spec = job_spec_pb2.JobSpec(
        base=job_spec_pb2.BaseSpec(source="bases/tiny"),
        dataset=job_spec_pb2.DatasetSpec(path="data.jsonl"),
        output=job_spec_pb2.Output(adapter=f"bot-{number:05}"),
    )
    return trainer_pb.CreateJobRequest(parent=_NAMESPACE, spec=spec)


async def _all_run(stub: TrainerServiceAsyncStub, count: int) -> bool:
    running, token = 0, ""
    while True:
        page = await stub.ListJobs(
            trainer_pb.ListJobsRequest(parent=_NAMESPACE, page_size=500, page_token=token)
        )
        for job in page.jobs:
            if job.state == trainer_pb.JOB_STATE_FAILED:
                raise RuntimeError(f"{job.name} failed: {job.message}")
            running += job.state == trainer_pb.JOB_STATE_RUNNING
        token = page.next_page_token
        if not token:
            return running == count


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(300):
        while not await condition():  # noqa: ASYNC110 - a service is asked
            await asyncio.sleep(0.5)


async def requests(
    address: str, pid: int, models: Sequence[str], at_once: int, seconds: float
) -> Measurement:
    """Unary requests of 16 tokens from a fake engine, which takes no time: what is around an engine.

    Returns:
        requests_per_s; cpu_ms of the service for one.
    """
    done, until_s = 0, 0.0
    async with open_channel(address) as channel:
        stub = InferenceServiceStub(channel)

        async def ask(number: int) -> None:
            await stub.Generate(
                inference_pb.GenerateRequest(
                    model=models[number % len(models)],
                    prompt="hello",
                    sampling=inference_pb.SamplingParams(temperature=0.0, max_tokens=16),
                )
            )

        async def work(number: int) -> None:
            nonlocal done
            while time.perf_counter() < until_s:
                await ask(number + done)
                done += 1

        for number in range(len(models)):
            await ask(number)
        used, begin_s = Used(pid), time.perf_counter()
        until_s = begin_s + seconds
        await asyncio.gather(*(work(number) for number in range(at_once)))
        took_s = time.perf_counter() - begin_s
    return {"requests_per_s": done / took_s, "cpu_ms_per_request": used.cpu_s * 1000 / done}
