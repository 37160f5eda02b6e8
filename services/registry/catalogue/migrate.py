"""Brings a catalogue's schema to the newest revision with the Alembic migrations beside this file."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from services.registry.catalogue import migrations
from services.registry.catalogue.changes import WRITE


async def upgrade(engine: AsyncEngine, revision: str = "head") -> None:
    """Runs what migrations are missing, all in one transaction."""
    async with engine.connect() as plain:
        connection = await plain.execution_options(**{WRITE: True})
        async with connection.begin():
            await connection.run_sync(_upgrade, revision)


def _upgrade(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__path__[0])))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
