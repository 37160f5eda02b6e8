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


async def check_current(engine: AsyncEngine) -> None:
    """For who reads a catalogue beside a registry that may be another Graft: changes nothing.

    Raises:
        GraftError: UNAVAILABLE when the schema is not the one that this Graft makes.
    """
    async with engine.connect() as connection:
        await connection.run_sync(_check_current)


def _check_current(connection: Connection) -> None:
    scripts = ScriptDirectory.from_config(_config(connection))
    _check_known(connection, scripts)
    found = MigrationContext.configure(connection).get_current_revision()
    if found != scripts.get_current_head():
        raise GraftError(
            Reason.UNAVAILABLE,
            f"The registry's database has the schema {found or 'of no registry'}, and this Graft "
            f"makes {scripts.get_current_head()}",
            next_step="Check the settings; if they are right, run the Graft version of the registry "
            "that runs there, or start this one's registry first: it brings the schema up to date.",
        )


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__path__[0])))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection, revision: str) -> None:
    config = _config(connection)
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
