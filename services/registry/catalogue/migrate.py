"""Brings a catalogue's schema to the newest revision with the Alembic migrations beside this file."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from graft.errors import GraftError, Reason
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.registry.catalogue import migrations
from services.registry.catalogue.changes import WRITE

# Any number that nobody else's advisory lock in the same database has.
_LOCK = 0x67726166


async def upgrade(engine: AsyncEngine, revision: str = "head") -> None:
    """Runs what migrations are missing, all in one transaction.

    Of several processes that start at once, one does it and the others wait.

    Raises:
        GraftError: UNAVAILABLE for a schema of a newer Graft.
    """
    async with engine.connect() as plain:
        connection = await plain.execution_options(**{WRITE: True})
        async with connection.begin():
            if engine.dialect.name == "postgresql":
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            await connection.run_sync(_upgrade, revision)


def _upgrade(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__path__[0])))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    _check_known(connection, ScriptDirectory.from_config(config))
    command.upgrade(config, revision)


def _check_known(connection: Connection, scripts: ScriptDirectory) -> None:
    known = {script.revision for script in scripts.walk_revisions()}
    found = MigrationContext.configure(connection).get_current_heads()
    for revision in found:
        if revision not in known:
            raise GraftError(
                Reason.UNAVAILABLE,
                f"The registry's database has the schema {revision}, which this Graft does not "
                f"know (it knows up to {scripts.get_current_head()})",
                next_step="Run the Graft version that made it, or a later one.",
            )
