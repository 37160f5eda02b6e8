"""A database of every earlier schema is upgraded with what is in it, on both databases."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from graft.errors import GraftError
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.registry.catalogue import tables
from services.registry.catalogue.blob_index import BlobIndex
from services.registry.catalogue.database import Database
from services.registry.catalogue.migrate import upgrade
from services.registry.catalogue.postgres import open_postgres
from services.registry.catalogue.sql import SqlCatalogue
from services.registry.catalogue.sqlite import open_sqlite
from services.registry.domain import Action, Adapter, Alias, Base, Version
from services.registry.pulse import Pulse
from tests.support.catalogue import BASE, BOT, NS, PRODUCTION, version

NOW_US = 1_790_000_000_000_000


def _lineage(number: int) -> dict[str, object]:
    return {
        "job": f"{NS}/jobs/j{number}",
        "attempt": 1,
        "spec_json": "{}",
        "data_digest": "sha256:d",
        "data_rows": 10,
        "seed": 0,
        "library_versions": {"peft": "0.21.2"},
        "metrics": {"train_loss": 0.5 / number, "eval_loss": "NaN"},
    }


def _old_version(number: int) -> dict[str, object]:
    """As issue 2's registry wrote it, in its tables and in its events."""
    manifest = {
        "base": BASE.name,
        "base_fingerprint": "sha256:f",
        "peft_type": "LORA",
        "rank": 8,
        "alpha": 16.0,
        "target_modules": ["q_proj"],
        "files": [
            {"path": "adapter_config.json", "digest": "sha256:config", "size_bytes": 100},
            {"path": "adapter_model.safetensors", "digest": f"sha256:w{number}", "size_bytes": 900},
        ],
        "lineage": _lineage(number),
    }
    report = {"checks": [{"name": "files", "detail": "2"}], "tensors": 2, "parameters": 768}
    return {
        "adapter": BOT,
        "number": number,
        "digest": f"sha256:{number}",
        "manifest": manifest,
        "report": report,
        "create_time": "2026-09-21T13:33:20Z",
    }


def _old_alias(number: int, before: int, revision: int) -> dict[str, object]:
    return {
        "name": PRODUCTION,
        "adapter": BOT,
        "version": number,
        "version_digest": f"sha256:{number}",
        "previous_version": before,
        "etag": f"e{revision}",
        "actor": "ann",
        "reason": "better",
        "update_time": "2026-09-21T13:33:20Z",
        "revision": revision,
    }


async def _fill_0001(engine: AsyncEngine) -> None:
    """What a registry of the first schema held: a base, an adapter, two versions, two moves."""
    old_adapter = {
        "name": BOT,
        "base": BASE.name,
        "description": "answers",
        "labels": {"team": "a"},
        "latest_version": 0,
        "create_time": "2026-09-21T13:33:20Z",
    }
    old_base = {
        "name": BASE.name,
        "source": "/models/tiny",
        "fingerprint": {
            "digest": "sha256:f",
            "config_digest": "sha256:c",
            "tokenizer_digest": "sha256:t",
            "weights_digest": "sha256:w",
        },
        "config_json": "{}",
        "modules": [{"path": "q_proj", "in_features": 64, "out_features": 32}],
        "create_time": "2026-09-21T13:33:20Z",
    }
    events = [
        ("base", old_base),
        ("adapter", old_adapter),
        ("version", _old_version(1)),
        ("version", _old_version(2)),
        ("alias", _old_alias(1, 0, 5)),
        ("alias", _old_alias(2, 1, 6)),
    ]
    async with engine.begin() as connection:

        async def insert(table: str, **values: object) -> None:
            stored = {
                key: json.dumps(value) if isinstance(value, dict | list) else value
                for key, value in values.items()
            }
            names = ", ".join(stored)
            marks = ", ".join(f":{name}" for name in stored)
            await connection.execute(
                text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), stored
            )

        time = {"create_time_us": NOW_US}
        base_row = {key: value for key, value in old_base.items() if key != "create_time"}
        await insert("bases", namespace="default", **base_row, **time)
        adapter_row = {**old_adapter, "latest_version": 2}
        del adapter_row["create_time"]
        await insert("adapters", namespace="default", **adapter_row, **time)
        for number in (1, 2):
            row = {
                key: value for key, value in _old_version(number).items() if key != "create_time"
            }
            await insert("versions", **row, **time)
        for number, before, revision in ((1, 0, 5), (2, 1, 6)):
            moved = _old_alias(number, before, revision)
            del moved["update_time"]
            row = {**moved, "namespace": "default", "update_time_us": NOW_US}
            await insert("alias_moves", **row)
        await insert("aliases", **row)
        for revision, (kind, resource) in enumerate(events, start=1):
            await insert(
                "events",
                revision=revision,
                namespace="default",
                kind=kind,
                resource=resource,
                time_us=NOW_US,
            )
        await insert(
            "request_keys",
            namespace="default",
            request_id="r1",
            request_hash="h",
            kind="version",
            resource=_old_version(2),
            time_us=NOW_US,
        )
        await connection.execute(text("UPDATE revisions SET value = 6"))


@pytest.fixture(params=["sqlite", "postgresql"])
async def upgraded(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """A database that began with the first schema and was filled then."""
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path / 'r.db'}"
    else:
        dsn = request.getfixturevalue("postgres").create_database(schema=False)
        url = dsn.replace("postgresql://", "postgresql+asyncpg://")
    old = create_async_engine(url)
    await upgrade(old, "0001")
    await _fill_0001(old)
    await old.dispose()
    if request.param == "sqlite":
        engine = await open_sqlite(tmp_path / "r.db")
    else:
        engine = await open_postgres(dsn)
    database = Database(engine, Pulse())
    yield database
    await database.close()


async def _rows(database: Database, query: str) -> Sequence[Row[Any]]:
    async def work(connection: AsyncConnection) -> Sequence[Row[Any]]:
        return (await connection.execute(text(query))).all()

    return await database.read(work)


async def test_everything_of_the_first_schema_is_there(upgraded: Database) -> None:
    catalogue = SqlCatalogue(upgraded)
    bot = await catalogue.get_adapter(BOT)
    assert (bot.latest_version, bot.labels, bot.life.deleted) == (2, {"team": "a"}, False)
    second = await catalogue.get_version_by_alias(PRODUCTION)
    assert (second.number, second.digest, second.parent) == (2, "sha256:2", BOT)
    assert second.manifest.lineage.metrics["train_loss"] == 0.25
    history = (await catalogue.list_alias_history(PRODUCTION, 10, None)).items
    assert [(one.version, one.previous_version, one.actor) for one in history] == [
        (2, 1, "ann"),
        (1, 0, "ann"),
    ]
    assert await catalogue.counts() == {"adapters": 1, "bases": 1, "versions": 2}


async def test_stored_events_are_told_as_before(upgraded: Database) -> None:
    events = await SqlCatalogue(upgraded).events(0, 100, None)
    assert [type(one.resource) for one in events] == [
        Base, Adapter, Version, Version, Alias, Alias,
    ]  # fmt: skip
    assert [one.parent for one in events] == [BASE.name, *[BOT] * 5]
    assert [one.action for one in events] == [*[Action.CREATED] * 5, Action.UPDATED]


async def test_work_goes_on_where_it_stopped(upgraded: Database) -> None:
    catalogue, index = SqlCatalogue(upgraded), BlobIndex(upgraded)
    assert await index.present(["sha256:config", "sha256:w1", "sha256:none"]) == {
        "sha256:config",
        "sha256:w1",
    }
    third = await catalogue.commit_version(version(3, blob="sha256:w1"), None)
    assert third.number == 3
    assert await catalogue.revision() == 7
    (used,) = await _rows(upgraded, "SELECT * FROM namespaces")
    query = f"SELECT source FROM lineage_edges WHERE result = '{BOT}/versions/1' ORDER BY relation"
    assert [row.source for row in await _rows(upgraded, query)] == [
        BASE.name,
        f"{NS}/data/sha256:d",
        f"{NS}/jobs/j1",
    ]
    metrics = await _rows(upgraded, "SELECT * FROM version_metrics")
    assert (used.used_adapters, used.used_versions, used.used_bytes) == (1, 3, 2009)
    assert sorted((one.number, one.metric) for one in metrics) == [
        (1, "train_loss"),
        (2, "train_loss"),
        (3, "loss"),
    ]


async def test_the_upgraded_schema_is_that_of_the_code(upgraded: Database) -> None:
    difference = await upgraded.read(
        lambda connection: connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), tables.metadata)
        )
    )
    assert difference == []


async def test_a_database_of_a_newer_graft_is_left_alone(tmp_path: Path) -> None:
    engine = await open_sqlite(tmp_path / "r.db")
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await engine.dispose()
    with pytest.raises(GraftError, match="9999"):
        await open_sqlite(tmp_path / "r.db")
