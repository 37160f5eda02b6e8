"""The migration by itself, as an init container does it before a new registry serves."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from pathlib import Path

from tests.support.postgres import PostgresServer
from tests.support.processes import ServiceProcess

CHECKOUT = Path(__file__).parents[3]


async def migrate(**settings: str) -> tuple[int, str]:
    """Runs it with these settings; returns its exit code and what it said."""
    variables = {f"GRAFT_REGISTRY_{name.upper()}": value for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.registry.migrate",
        cwd=CHECKOUT,
        env={**os.environ, **variables, "PYTHONPATH": f"{CHECKOUT / 'sdk'}:{CHECKOUT}"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_several_that_migrate_one_postgres_at_once_all_succeed_and_a_registry_then_serves(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    database = postgres.create_database(schema=False)
    ends = await asyncio.gather(*(migrate(database=database) for _ in range(3)))
    assert [code for code, _ in ends] == [0, 0, 0], ends
    with ServiceProcess("registry", tmp_path, database=database) as process:
        await process.ready()


async def test_a_sqlite_file_is_made_where_the_settings_name_one(tmp_path: Path) -> None:
    code, said = await migrate(data_dir=str(tmp_path))
    assert code == 0, said
    with sqlite3.connect(tmp_path / "registry.db") as file:
        assert file.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
    file.close()


async def test_a_schema_of_a_newer_graft_is_left_alone_and_named(tmp_path: Path) -> None:
    assert (await migrate(data_dir=str(tmp_path)))[0] == 0
    with sqlite3.connect(tmp_path / "registry.db") as file:
        file.execute("UPDATE alembic_version SET version_num = 'v9999'")
    file.close()
    code, said = await migrate(data_dir=str(tmp_path))
    assert code == 1
    assert "v9999" in json.loads(said.splitlines()[-1])["error"]


async def test_wrong_settings_are_named(tmp_path: Path) -> None:
    code, said = await migrate(data_dir=str(tmp_path), database="mysql://somewhere")
    assert (code, "GRAFT_REGISTRY_DATABASE: " in said, "mysql://" in said) == (2, True, True)
