"""Databases of registries with the newest schema, made once and copied: to make it takes longer than most tests.

What is tested of the migrations themselves begins without: tests/contracts/registry/test_migrations.py.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from services.registry.catalogue.postgres import open_postgres
from services.registry.catalogue.sqlite import open_sqlite


def give_schema(path: Path) -> None:
    """Puts a registry's SQLite file at path, without rows, where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_sqlite_file())


async def migrate_postgres(url: str) -> None:
    """Makes the tables of a registry in an empty database."""
    await (await open_postgres(url)).dispose()


@cache
def _sqlite_file() -> bytes:
    with TemporaryDirectory() as folder, ThreadPoolExecutor(1) as thread:
        path = Path(folder) / "registry.db"
        # In a thread, so that it works beside a running event loop too.
        thread.submit(asyncio.run, _migrate_sqlite(path)).result()
        return path.read_bytes()


async def _migrate_sqlite(path: Path) -> None:
    await (await open_sqlite(path)).dispose()
