"""How far one registry, trainer and endpoint carry, and what ends first: simulated, without a GPU.

The services are the real ones, each in a process of its own. Fake are what costs no control plane
anything: engines answer without computing, workers report without training. Everything, clients too, is
on one machine, so latencies are upper bounds.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop
from graft.names import alias_name, version_name
from sqlalchemy import insert, select, update

from bench import capacity_load as load
from bench import registry_load
from bench.harness import Measurement, Report, Summary
from bench.processes import ServerProcess
from services.registry.catalogue.change import Change
from services.registry.catalogue.database import Database
from services.registry.catalogue.postgres import open_postgres
from services.registry.catalogue.sqlite import open_sqlite
from services.registry.catalogue.tables import adapters, aliases, version_files, versions
from services.registry.pulse import Pulse
from tests.support.models import make_adapter, make_base
from tests.support.postgres import PostgresServer
from tests.support.processes import ServiceProcess
from tests.support.registry import registry_calls

_SIZES = (100, 1_000, 10_000)
_WATCHERS = (100, 300, 1_000)
_REGISTRIES = (10, 100)
_JOBS = (100, 500)
_STEP_S = 10.0
_MAX_MESSAGE_KIB = 16 * 1024


def run(short: bool = False) -> Report:
    """Every figure, and from them what one core or one limit carries."""
    report = Report("capacity", {"step_s": _STEP_S, "short": short})
    with tempfile.TemporaryDirectory(prefix="graft-capacity-") as folder:
        root = Path(folder)
        for count in (20,) if short else _JOBS:
            _trainer(report, root / f"trainer-{count}", count, short)
        for size in _SIZES[:1] if short else _SIZES:
            _registry_of(
                report, root / f"registry-{size}", size, short, size == _SIZES[-1] or short
            )
        for count in _REGISTRIES[:1] if short else _REGISTRIES:
            _registries(report, root / f"registries-{count}", count, short)
    _bottlenecks(report)
    return report


def _add(report: Report, who: str, measured: Measurement) -> None:
    print(
        f"   capacity: {who}: " + ", ".join(f"{k}={v:,.4g}" for k, v in measured.items()),
        flush=True,
    )
    report.rounds.append({who: dict(measured)})
    figures = {name: Summary.of([value]) for name, value in measured.items()}
    report.figures.setdefault(who, {}).update(figures)


@contextmanager
def _serving(folder: Path, url: str = "") -> Iterator[ServiceProcess]:
    settings = {
        "log_level": "WARNING",
        "bookmark_interval_s": "3600",
        **({"database": url} if url else {}),
    }
    with ServiceProcess("registry", folder, **settings).wait_ready() as process:
        yield process


def _registry_of(report: Report, folder: Path, size: int, short: bool, largest: bool) -> None:
    """Figures of a registry with so many adapters; watchers and an endpoint on the largest."""
    base = uvloop.run(_fill(folder, "", size))
    who = f"registry, {size:,} adapters"
    with _serving(folder) as process:
        pid, address = process.process.pid, process.address
        names = [alias_name(load.adapter(one), "production") for one in _some(size)]
        used = load.Used(pid)
        seconds, rate_hz = (2.0, 200.0) if short else (10.0, 500.0)
        found = uvloop.run(registry_load.lookups(address, names, rate_hz, seconds))
        # Three rounds of warming up are in it too.
        asked = rate_hz * seconds + 3 * len(names)
        database_kib = (folder / "registry.db").stat().st_size / 1024
        _add(
            report,
            who,
            {
                "lookup_p50_ms": found["p50_ms"],
                "lookup_p99_ms": found["p99_ms"],
                "lookup_cpu_ms": used.cpu_s * 1000 / asked,
                **uvloop.run(load.snapshots(address, 2 if short else 5)),
                "memory_mib": used.memory_mib,
                "database_kib_per_adapter": database_kib / size,
            },
        )
        if largest:
            for watchers in (20,) if short else _WATCHERS:
                _add(
                    report,
                    f"registry, {watchers:,} watchers",
                    uvloop.run(load.moves_to_watchers(address, pid, watchers, 3 if short else 20)),
                )
            _endpoint(report, folder, base, address, size, short)


def _some(size: int) -> list[int]:
    return random.Random(0).sample(range(size), min(size, 500))


def _endpoint(
    report: Report, folder: Path, base: Path, registry: str, size: int, short: bool
) -> None:
    """An inference service with a fake engine that knows all the adapters."""
    settings = {
        "engine": "fake",
        "base": str(base),
        "base_name": "tiny",
        "registry_address": registry,
        "max_adapters": "128",
        "log_level": "WARNING",
    }
    with ServiceProcess("inference", folder / "endpoint", **settings).wait_ready() as process:
        pid = process.process.pid
        models = [f"bot-{number:05}@production" for number in range(min(size, 100))]
        found = uvloop.run(load.requests(process.address, pid, models, 64, 2.0 if short else 10.0))
        memory_mib = load.Used(pid).memory_mib
        _add(report, f"endpoint, {size:,} adapters known", {**found, "memory_mib": memory_mib})


def _registries(report: Report, folder: Path, count: int, short: bool) -> None:
    most = f"max_connections={2 * count + 100}"
    with PostgresServer(durable=True, settings=(most,)) as server:
        url = server.create_database()
        uvloop.run(_fill(folder, url, 10))
        with _serving(folder, url) as process:
            found = uvloop.run(
                load.many_registries(url, count, 3 if short else 20, process.address)
            )
    _add(report, f"PostgreSQL, {count} registries", found)


def _trainer(report: Report, folder: Path, count: int, short: bool) -> None:
    folder.mkdir(parents=True)
    ready = folder / "ready.json"
    arguments = [str(folder), str(count), str(_STEP_S)]
    server = ServerProcess("bench.capacity_trainer", arguments, {}, folder / "log")
    try:
        server.wait_until(ready.exists)
        address = json.loads(ready.read_text())["address"]
        seconds = 3.0 if short else 30.0
        found = uvloop.run(load.jobs(address, server.pid, count, seconds))
    finally:
        server.close()
    _add(report, f"trainer, {count:,} running jobs", found)


async def _fill(folder: Path, url: str, size: int) -> Path:
    """One adapter with two real versions, and its copies under all other names; answers its base."""
    base = await asyncio.to_thread(make_base, folder / "base")
    made = [await asyncio.to_thread(make_adapter, folder / f"a{n}", base, seed=n) for n in (1, 2)]
    with _serving(folder, url) as process:
        async with registry_calls(process.address) as calls:
            recorded = await calls.create_base(base)
            await calls.create_adapter("bot-00000")
            for one in made:
                await calls.commit(one, recorded.fingerprint.digest, "bot-00000")
            await calls.set_alias(version_name(load.adapter(0), 1))
    engine = await (open_postgres(url, 2) if url else open_sqlite(folder / "registry.db"))
    database = Database(engine, Pulse())
    for begin in range(1, size, 500):
        numbers = range(begin, min(size, begin + 500))
        await database.change(lambda change, numbers=numbers: _copy(change, numbers))  # type: ignore[misc]
    await database.close()
    return base


async def _copy(change: Change, numbers: range) -> None:
    first = load.adapter(0)
    for table, column in (
        (adapters, "name"), (versions, "parent"), (version_files, "parent"), (aliases, "parent")
    ):  # fmt: skip
        found = await change.connection.execute(select(table).where(table.c[column] == first))
        rows = [row._asdict() for row in found]
        copies = [
            {
                **row,
                column: load.adapter(number),
                **(
                    {"name": alias_name(load.adapter(number), "production")}
                    if table is aliases
                    else {}
                ),
            }
            for number in numbers
            for row in rows
        ]
        await change.connection.execute(insert(table), copies)
    await change.connection.execute(update(adapters).values(latest_version=2))


def _bottlenecks(report: Report) -> None:
    """What one core, or one limit, carries: from the largest that was measured."""

    def of(prefix: str, figure: str) -> tuple[str, float]:
        who = [
            name
            for name in report.figures
            if name.startswith(prefix) and figure in report.figures[name]
        ][-1]
        return who, report.figures[who][figure].median

    _, lookup_ms = of("registry", "lookup_cpu_ms")
    watchers_said, move_ms = of("registry", "registry_cpu_ms_per_move")
    sizes_said, aliases_kib = of("registry", "aliases_kib")
    jobs_said, cores = of("trainer", "cores")
    _, request_ms = of("endpoint", "cpu_ms_per_request")
    _, last_ms = of("PostgreSQL", "last_ms")
    size, watchers, jobs = (_number(one) for one in (sizes_said, watchers_said, jobs_said))
    _add(
        report,
        "one core, or one limit, carries",
        {
            "lookups_per_s": 1000 / lookup_ms,
            f"alias_moves_per_s_to_{watchers}_watchers": 1000 / move_ms,
            f"running_jobs_with_a_step_each_{_STEP_S:g}_s": jobs / cores,
            "requests_per_s_through_an_endpoint": 1000 / request_ms,
            "aliases_of_a_namespace_in_one_answer": size * _MAX_MESSAGE_KIB / aliases_kib,
        },
    )
    _, heard_ms = of("registry", "last_ms")
    report.goal(
        f"a move reaches {watchers:,} watchers", "<= 2 s", heard_ms / 1000, heard_ms <= 2000
    )
    report.goal("a move reaches all registries", "<= 2 s", last_ms / 1000, last_ms <= 2000)


def _number(who: str) -> int:
    return int("".join(letter for letter in who if letter.isdigit()))
