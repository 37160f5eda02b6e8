"""The engine of a catalogue on PostgreSQL, which any number of registry processes share."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from graft.errors import GraftError, Reason
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from services.registry.catalogue.failures import FAILURES
from services.registry.catalogue.migrate import check_current, upgrade

_DIALECT = "postgresql+asyncpg://"
_CONNECT_S = 10.0
_STATEMENT_S = 30.0
_COMMON: Mapping[str, str] = {
    "application_name": "graft-registry",
    # Its plans take longer to compile than our statements to run.
    "jit": "off",
    # A process or a network that hangs must not hold the lock of all changes for good.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
_SERVING: Mapping[str, str] = {
    **_COMMON,
    "idle_in_transaction_session_timeout": "30s",
    "lock_timeout": "20s",
}
# Its shutdown, a crash of another of its processes, its start; it closes the connection after.
_GOING_AWAY = ("57P01", "57P02", "57P03", "57P05", "25P03")


def place_of(dsn: str) -> str:
    """What of a database's URL may be shown: host and database, no user and no password."""
    parts = urlsplit(dsn)
    return f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"


async def connect(dsn: str, settings: Mapping[str, str] = _COMMON, **options: Any) -> Any:
    """A connection of asyncpg's own.

    dsn is a libpq URL, with what libpq allows in it: several hosts, sslmode, a service file.
    """
    return await asyncpg.connect(dsn, timeout=_CONNECT_S, server_settings=dict(settings), **options)


async def open_postgres(dsn: str, connections: int = 10, migrate: bool = True) -> AsyncEngine:
    """An engine for the database at dsn, brought to the newest schema where needed.

    Args:
        dsn: postgresql://user@host:port/database; a password may come from it or from ~/.pgpass.
        connections: how many the engine holds at most.
        migrate: False to leave its schema as it is; then any but this Graft's is UNAVAILABLE.

    Raises:
        GraftError: UNAVAILABLE when the database cannot be reached or used.
    """
    try:
        await _upgrade(dsn, migrate)
    except FAILURES as error:
        raise _unusable(dsn, error) from error

    async def serve() -> Any:
        return await connect(dsn, _SERVING, command_timeout=_STATEMENT_S)

    engine = create_async_engine(
        _DIALECT,
        async_creator=serve,
        pool_size=connections,
        max_overflow=0,
        # The same few stay warm, with their prepared statements.
        pool_use_lifo=True,
        isolation_level="READ COMMITTED",
    )
    event.listen(engine.sync_engine, "handle_error", _tell_the_dead)
    return engine


async def _upgrade(dsn: str, migrate: bool) -> None:
    # Apart from the others: a migration may take longer than any statement else.
    engine = create_async_engine(_DIALECT, async_creator=lambda: connect(dsn), poolclass=NullPool)
    try:
        await (upgrade if migrate else check_current)(engine)
    finally:
        await engine.dispose()


def _tell_the_dead(context: ExceptionContext) -> None:
    # The server's word that it goes away comes before the connection is closed.
    state = getattr(context.original_exception, "sqlstate", None) or ""
    if state in _GOING_AWAY or state.startswith("08"):
        context.is_disconnect = True


def _unusable(dsn: str, error: Exception) -> GraftError:
    said = str(error.__cause__ or error) or type(error).__name__
    with suppress(ValueError):
        said = said.replace(urlsplit(dsn).password or "\0", "***")
    return GraftError(
        Reason.UNAVAILABLE,
        f"The registry's database {place_of(dsn)} cannot be used: {said}",
        next_step="Check GRAFT_REGISTRY_DATABASE, and that PostgreSQL runs there and lets this "
        "user create tables in that database.",
    )
