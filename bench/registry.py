"""The registry on both of its databases: lookups, commits, listings, watches and races.

The client runs on the same machine. PostgreSQL writes to the disk as in production. The catalogue
holds 100,000 versions in 100 adapters; they are put there by SQL, as copies of one real version.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop
from graft.names import version_name
from graft.registry.v1 import registry_service_pb2 as pb
from sqlalchemy import insert, select, update

from bench import registry_load as load
from bench.harness import Measurement, Report, Summary
from services.registry.catalogue.database import Change, Database
from services.registry.catalogue.postgres import open_postgres
from services.registry.catalogue.sqlite import open_sqlite
from services.registry.catalogue.tables import adapters, aliases, versions
from services.registry.pulse import Pulse
from tests.support.models import make_adapter, make_base
from tests.support.postgres import PostgresServer
from tests.support.processes import ServiceProcess
from tests.support.registry import registry_calls

_ADAPTERS = 100
_RATE_HZ = 1000.0
_WATCHERS = 100
_WRITERS = 32


def run(short: bool = False) -> Report:
    """Every figure on SQLite and on PostgreSQL."""
    each = 20 if short else 1000
    settings = {"versions": each * _ADAPTERS, "rate_hz": _RATE_HZ, "watchers": _WATCHERS}
    report = Report("registry", dict(settings))
    rounds = 1 if short else 3
    measured: dict[str, list[dict[str, Measurement]]] = {"sqlite": [], "postgresql": []}
    with tempfile.TemporaryDirectory() as folder, PostgresServer(durable=True) as server:
        places = {"sqlite": "", "postgresql": server.create_database()}
        for database, url in places.items():
            uvloop.run(_fill(Path(folder) / database, url, each))
            if url:
                server.execute("VACUUM ANALYZE", url.rpartition("/")[2])
        for _ in range(rounds):
            for database, url in places.items():
                with _registry(Path(folder) / database, url) as address:
                    measured[database].append(uvloop.run(_measure(address, each, short)))
    for database, found in measured.items():
        _summarize(report, database, found)
    return report


@contextmanager
def _registry(folder: Path, url: str) -> Iterator[str]:
    # Its log goes to a file; a line for each of a thousand calls a second is a log for debugging.
    settings = {
        "log_level": "WARNING",
        "bookmark_interval_s": "3600",
        **({"database": url} if url else {}),
    }
    with ServiceProcess("registry", folder, **settings).wait_ready() as process:
        yield process.address


def _adapter(number: int) -> str:
    return f"namespaces/default/adapters/bot-{number:03}"


def _alias(number: int, alias: str = "production") -> str:
    return f"{_adapter(number)}/aliases/{alias}"


async def _fill(folder: Path, url: str, each: int) -> None:
    """One real version of one adapter, and its copies under all others."""
    base = await asyncio.to_thread(make_base, folder / "base")
    made = await asyncio.to_thread(make_adapter, folder / "adapter", base)
    with _registry(folder, url) as address:
        async with registry_calls(address) as calls:
            recorded = await calls.create_base(base)
            for number in range(_ADAPTERS):
                await calls.create_adapter(f"bot-{number:03}")
            await calls.commit(made, recorded.fingerprint.digest, "bot-000")
            for alias in ("production", "raced"):
                await calls.set_alias_named(_alias(0, alias), version_name(_adapter(0), 1))
    engine = await (open_postgres(url) if url else open_sqlite(folder / "registry.db"))
    database = Database(engine, Pulse())
    for number in range(_ADAPTERS):
        await database.change(lambda change, number=number: _copy(change, number, each))  # type: ignore[misc]
    await database.close()


async def _copy(change: Change, number: int, each: int) -> None:
    first = (
        await change.connection.execute(select(versions).where(versions.c.parent == _adapter(0)))
    ).first()
    assert first is not None
    copies = [
        {
            **first._asdict(),
            "parent": _adapter(number),
            "number": index,
            "digest": f"sha256:{number:032}{index:032}",
            "create_time_us": first.create_time_us + number * each + index,
        }
        for index in range(1 if number else 2, each + 1)
    ]
    await change.connection.execute(insert(versions), copies)
    await change.connection.execute(
        update(adapters).where(adapters.c.name == _adapter(number)).values(latest_version=each)
    )
    if number:
        pointing = (
            await change.connection.execute(select(aliases).where(aliases.c.name == _alias(0)))
        ).one()
        await change.connection.execute(
            insert(aliases).values(
                {
                    **pointing._asdict(),
                    "name": _alias(number),
                    "parent": _adapter(number),
                    "version": each,
                }
            )
        )


async def _measure(address: str, each: int, short: bool) -> dict[str, Measurement]:
    seconds = 2.0 if short else 10.0
    names = [_alias(number) for number in range(_ADAPTERS)]
    some = [version_name(_adapter(0), number) for number in (1, 2, 3)]
    async with registry_calls(address) as calls:
        one = await calls.get_version(some[0])
    request = pb.CommitVersionRequest(
        files=one.manifest.files, base_fingerprint=one.manifest.base_fingerprint
    )
    parents = [_adapter(number) for number in range(_WRITERS)]
    steps: dict[str, Callable[[], Awaitable[Measurement]]] = {
        "GetVersion by alias": lambda: load.lookups(address, names, _RATE_HZ, seconds),
        "listing": lambda: load.pages(
            address, "namespaces/default/adapters/-", 100 if short else 1000
        ),
        "alias move": lambda: load.alias_moves(
            address, _alias(0), some, _WATCHERS, 5 if short else 50
        ),
        "compare-and-set": lambda: load.races(
            address, _alias(0, "raced"), some, _WRITERS, 20 if short else 1000
        ),
        "commit": lambda: load.commits(address, request, parents, _WRITERS, seconds),
    }
    return {name: await step() for name, step in steps.items()}


def _summarize(report: Report, database: str, found: list[dict[str, Measurement]]) -> None:
    report.rounds += [
        {f"{database}: {name}": dict(one) for name, one in measured.items()} for measured in found
    ]
    for name in found[0]:
        report.figures[f"{database}: {name}"] = {
            figure: Summary.of([measured[name][figure] for measured in found])
            for figure in found[0][name]
        }

    def of(name: str, figure: str) -> float:
        return report.figures[f"{database}: {name}"][figure].median

    p99_ms, hz = of("GetVersion by alias", "p99_ms"), of("GetVersion by alias", "answered_hz")
    kept_up = hz > 0.98 * _RATE_HZ
    report.goal(
        f"{database}: GetVersion by alias, p99",
        "<= 10 ms at 1,000/s",
        p99_ms,
        p99_ms <= 10 and kept_up,
    )
    per_s = of("commit", "commits_per_s")
    report.goal(f"{database}: commits", ">= 300/s", per_s, per_s >= 300)
    ratio = of("listing", "ratio")
    report.goal(f"{database}: last pages beside the first", "about 1", ratio, ratio <= 1.25)
    heard_ms = of("alias move", "p50_ms")
    report.goal(
        f"{database}: a move reaches 100 watchers, median", "<= 100 ms", heard_ms, heard_ms <= 100
    )
    single = min(one["compare-and-set"]["single_winner_rounds"] for one in found)
    rounds = found[0]["compare-and-set"]["rounds"]
    report.goal(
        f"{database}: rounds with exactly one winner", f"{rounds:,.0f}", single, single == rounds
    )
