"""The engine of the embedded catalogue: one SQLite file, durable at every commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.registry.catalogue.database import SNAPSHOT, WRITE
from services.registry.catalogue.migrate import check_current, upgrade

_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA busy_timeout=10000",
    "PRAGMA foreign_keys=ON",
)


async def open_sqlite(path: Path, migrate: bool = True) -> AsyncEngine:
    """An engine for the file at path, made and brought to the newest schema where needed.

    Args:
        path: of the file.
        migrate: False to leave its schema as it is.

    Raises:
        GraftError: UNAVAILABLE for a schema of a newer Graft, without migrate for any but this one's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    event.listen(engine.sync_engine, "connect", _configure)
    event.listen(engine.sync_engine, "begin", _begin)
    try:
        await (upgrade if migrate else check_current)(engine)
    except BaseException:
        await engine.dispose()
        raise
    return engine


def _configure(connection: Any, _record: Any) -> None:
    # The driver begins transactions late and never IMMEDIATE: _begin does it instead.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get(WRITE, False):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    elif options.get(SNAPSHOT, False):
        connection.exec_driver_sql("BEGIN")
