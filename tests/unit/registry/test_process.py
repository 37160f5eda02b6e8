"""The registry as a process of its own: killed, terminated, started twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from graft.errors import UnavailableError
from graft.names import alias_name
from graft.registry.v1 import registry_service_pb2 as pb
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.models import make_adapter
from tests.support.registry import RegistryCalls, registry_calls
from tests.support.waiting import eventually

REPOSITORY = Path(__file__).parents[3]
DEADLINE_S = 60
BOT = "namespaces/default/adapters/bot"


class Process:
    """A registry process on a data folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = b""

    async def start(self) -> None:
        """Returns when it serves, or has ended."""
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        environment = {
            **os.environ,
            "PYTHONPATH": f"{REPOSITORY / 'sdk'}:{REPOSITORY}",
            "GRAFT_REGISTRY_DATA_DIR": str(self.folder),
            "GRAFT_REGISTRY_READY_FILE": str(ready),
        }
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.registry", env=environment, cwd=self.folder,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._ended = asyncio.create_task(self.process.communicate())
        await eventually(lambda: ready.exists() or self._ended.done(), within_s=DEADLINE_S)
        self.address = json.loads(ready.read_text())["address"] if ready.exists() else ""

    async def end(self, number: int) -> int:
        """Sends a signal, unless it has ended, and returns its exit code."""
        if not self._ended.done():
            self.process.send_signal(number)
        async with asyncio.timeout(DEADLINE_S):
            _, self.log = await self._ended
        assert self.process.returncode is not None
        return self.process.returncode


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    """A running registry process, killed at the end."""
    started = Process(tmp_path)
    await started.start()
    yield started
    await started.end(signal.SIGKILL)


@asynccontextmanager
async def calls_to(process: Process) -> AsyncIterator[RegistryCalls]:
    """Calls to it."""
    async with registry_calls(process.address) as calls:
        yield calls


async def test_sigterm_ends_it_with_0_though_somebody_watches(process: Process) -> None:
    async with calls_to(process) as calls:
        stub: Any = health_pb2_grpc.HealthStub(calls.channel)
        health = await stub.Check(
            health_pb2.HealthCheckRequest(service="graft.registry.v1.RegistryService")
        )
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        watch = calls.stub.Watch(pb.WatchRequest(parent="namespaces/-"))
        assert (await calls.next_of(watch)).revision == 0
        assert await process.end(signal.SIGTERM) == 0
        with pytest.raises(UnavailableError):
            await calls.next_of(watch)
    assert b'"stopped"' in process.log


async def test_two_registries_do_not_share_a_folder(process: Process) -> None:
    second = Process(process.folder)
    ready = process.folder / "ready.json"
    kept = ready.read_text()
    await second.start()
    ready.write_text(kept)
    assert await second.end(signal.SIGTERM) == 1
    assert b"Another registry runs on" in second.log
    async with calls_to(process) as calls:
        assert await calls.list_adapters() == []


async def test_what_was_acknowledged_outlives_kill_9(
    process: Process, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("killed")
    folders = [make_adapter(root / str(seed), tiny_base, seed=seed) for seed in range(12)]
    acknowledged: list[pb.Version] = []
    moved: list[pb.Alias] = []
    async with calls_to(process) as calls:
        base = await calls.create_base(tiny_base)
        await calls.create_adapter()

    async def commit_on(calls: RegistryCalls, first: int) -> None:
        for number in range(first, len(folders)):
            version = await calls.commit(
                folders[number], base.fingerprint.digest, request_id=f"r{number}"
            )
            acknowledged.append(version)
            moved.append(await calls.set_alias(version.name))

    for kill_at in (3, 6, 9):
        async with calls_to(process) as calls:
            commits = asyncio.create_task(commit_on(calls, len(acknowledged)))
            await eventually(partial(_has, moved, kill_at), within_s=DEADLINE_S)
            assert await process.end(signal.SIGKILL) == -signal.SIGKILL
            commits.cancel()
            await asyncio.gather(commits, return_exceptions=True)
        await process.start()
        await _hold(process, acknowledged, moved)

    async with calls_to(process) as calls:
        await commit_on(calls, len(acknowledged))
        listed = await calls.stub.ListVersions(pb.ListVersionsRequest(parent=BOT))
    assert [one.number for one in listed.versions] == list(range(12, 0, -1))


async def _hold(process: Process, acknowledged: list[pb.Version], moved: list[pb.Alias]) -> None:
    """Everything acknowledged is there, whole, and every change has its event."""
    async with calls_to(process) as calls:
        for version in acknowledged:
            assert await calls.get_version(version.name) == version
            digests = [file.digest for file in version.manifest.files]
            assert await calls.blobs.missing(digests) == set()
        history = await calls.stub.ListAliasHistory(
            pb.ListAliasHistoryRequest(name=alias_name(BOT, "production"))
        )
        assert [one for one in reversed(history.aliases) if one in moved] == moved
        answer = await calls.stub.ListAliases(pb.ListAliasesRequest(parent=BOT))
        watch = calls.stub.Watch(pb.WatchRequest(parent="namespaces/-"))
        for revision in range(1, answer.revision + 1):
            assert (await calls.next_of(watch)).revision == revision
        watch.cancel()


def _has(items: list[pb.Alias], count: int) -> bool:
    return len(items) >= count
