"""A moved alias on its way to 1,000 replicas: three registries on one PostgreSQL, which writes to the disk.

Replicas are simulated (bench/replicas.py): all but the engine and the gRPC server is the service's own
code, with a connection and a watch each. A move counts until the replica routes requests to the new
version, loaded: event, description of the version, files from the node's cache, load, switch.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from bench.harness import Measurement, Report, Summary
from bench.registry_load import percentile
from tests.support.models import make_adapter, make_base
from tests.support.postgres import PostgresServer
from tests.support.processes import ROOT, ServiceProcess, process_environment
from tests.support.registry import RegistryCalls, registry_calls

_REGISTRIES, _REPLICAS, _PROCESSES = 3, 1000, 4
# Share a disk cache, as the pods of a node do.
_PER_NODE = 8
_MOVES = 20
_WANTED_S = 2.0
_DEADLINE_S = 120.0
_BETWEEN_S = 2.0


def run(short: bool = False) -> Report:
    """Moves an alias again and again, each time to a version that was committed just before."""
    replicas, moves = (40, 3) if short else (_REPLICAS, _MOVES)
    settings = {"registries": _REGISTRIES, "replicas": replicas, "per_node": _PER_NODE,
                "moves": moves, "database": "postgresql, fsync on"}  # fmt: skip
    report = Report("alias_replicas", settings)
    measured = uvloop.run(_measure(replicas, moves))
    report.rounds = [{"moves": dict(one)} for one in measured]
    report.figures["moves"] = {
        figure: Summary.of([one[figure] for one in measured]) for figure in measured[0]
    }
    slowest_s = max(one["last_routed_ms"] for one in measured) / 1000
    report.goal(
        f"alias move, until the last of {replicas:,} replicas routes to it, the slowest move",
        f"<= {_WANTED_S:g} s",
        slowest_s,
        slowest_s <= _WANTED_S,
    )
    return report


async def _measure(replicas: int, moves: int) -> list[Measurement]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(PostgresServer(durable=True))
        shared = {
            "database": server.create_database(),
            "blobs_dir": str(folder / "blobs"),
            "log_level": "WARNING",
        }
        registries = [
            stack.enter_context(ServiceProcess("registry", folder / f"registry-{number}", **shared))
            for number in range(_REGISTRIES)
        ]
        await asyncio.gather(*(registry.ready() for registry in registries))
        addresses = [registry.address for registry in registries]
        async with registry_calls(addresses[0]) as calls:
            fingerprint, adapters = await _prepare(calls, folder, moves)
        options = {"base": "namespaces/default/bases/tiny", "fingerprint": fingerprint,
                   "addresses": addresses, "replicas": replicas // _PROCESSES, "per_node": _PER_NODE}  # fmt: skip
        processes = [
            await stack.enter_async_context(_process(options | {"folder": str(folder / f"{n}")}))
            for n in range(_PROCESSES)
        ]
        await asyncio.gather(*(_heard(process) for process in processes))
        calls = await stack.enter_async_context(registry_calls(addresses[0]))
        measured = []
        for adapter in adapters:
            version = (await calls.commit(adapter, fingerprint)).name
            # As between a job's end and its promotion: its commit is no part of the move.
            await asyncio.sleep(_BETWEEN_S)
            measured.append(await _move(calls, version, processes))
        return measured


async def _prepare(calls: RegistryCalls, folder: Path, moves: int) -> tuple[str, list[Path]]:
    """An adapter with a version in production, and the files of one for each move."""
    base = await asyncio.to_thread(make_base, folder / "base")
    recorded = await calls.create_base(base)
    fingerprint = recorded.fingerprint.digest
    await calls.create_adapter("bot")
    first, *others = [
        await asyncio.to_thread(make_adapter, folder / f"adapter-{number}", base, seed=number)
        for number in range(moves + 1)
    ]
    await calls.set_alias((await calls.commit(first, fingerprint)).name)
    return fingerprint, others


@asynccontextmanager
async def _process(options: dict[str, Any]) -> Any:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.replicas", json.dumps(options)),
        stdin=PIPE, stdout=PIPE, cwd=ROOT, env=process_environment(), limit=16 * 1024 * 1024,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        await process.wait()


async def _heard(process: Process, version: str = "") -> dict[str, Any]:
    """What a process says of a version; without one, that it is ready."""
    assert process.stdout is not None
    async with asyncio.timeout(_DEADLINE_S):
        while True:
            line = await process.stdout.readline()
            assert line, "the replicas have ended"
            said: dict[str, Any] = json.loads(line)
            if said.get("version", "") == version:
                return said


async def _move(calls: RegistryCalls, version: str, processes: Sequence[Process]) -> Measurement:
    begin_s = time.monotonic()
    await calls.set_alias(version)
    stored_s = time.monotonic()
    said = await asyncio.gather(*(_heard(process, version) for process in processes))

    def passed_ms(what: str) -> list[float]:
        return [1000 * (at_s - begin_s) for one in said for at_s in one[what]]

    wanted, routed = passed_ms("wanted_s"), passed_ms("routed_s")
    print(f"   alias_replicas: last routed {max(routed):,.0f} ms", flush=True)
    return {
        "stored_ms": 1000 * (stored_s - begin_s),
        "p50_heard_ms": median(wanted),
        "last_heard_ms": max(wanted),
        "p50_routed_ms": median(routed),
        "p99_routed_ms": percentile(routed, 99),
        "last_routed_ms": max(routed),
    }
