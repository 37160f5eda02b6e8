"""The registry's database, SQLite and PostgreSQL in turns, for tests that run on both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.registry.catalogue.base import Catalogue
from services.registry.catalogue.database import Database
from services.registry.catalogue.postgres import open_postgres
from services.registry.catalogue.sql import SqlCatalogue
from services.registry.catalogue.sqlite import open_sqlite
from services.registry.pulse import Pulse
from tests.support.catalogue import fill
from tests.support.schemas import give_schema


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """An empty database of each kind, with the newest schema."""
    if request.param == "sqlite":
        give_schema(tmp_path / "registry.db")
        engine = await open_sqlite(tmp_path / "registry.db")
    else:
        server = request.getfixturevalue("postgres")
        engine = await open_postgres(server.create_database())
    opened = Database(engine, Pulse())
    yield opened
    await opened.close()


@pytest.fixture
async def catalogue(database: Database) -> Catalogue:
    """An empty catalogue in it."""
    return SqlCatalogue(database)


@pytest.fixture
async def filled(database: Database, catalogue: Catalogue) -> Catalogue:
    """With a base, the adapter bot and two versions."""
    await fill(database, catalogue)
    return catalogue
