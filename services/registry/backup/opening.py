"""Opens the catalogue and the bytes of a registry without serving them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from graft.errors import GraftError, Reason
from sqlalchemy import text

from services.registry.blobs.base import BlobStore
from services.registry.catalogue.database import Database
from services.registry.catalogue.postgres import open_postgres, place_of
from services.registry.catalogue.sqlite import open_sqlite
from services.registry.config import RegistrySettings
from services.registry.pulse import Pulse
from services.registry.server import lock_folder, open_blobs

# The name that connections of registries have in PostgreSQL; this process' own are among them.
_REGISTRIES = text(
    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'graft-registry' "
    "AND datname = current_database() AND pid <> pg_backend_pid()"
)


@dataclass(frozen=True, slots=True)
class Opened:
    """A registry's two stores."""

    database: Database
    blobs: BlobStore


@asynccontextmanager
async def opened(settings: RegistrySettings, alone: bool) -> AsyncIterator[Opened]:
    """The stores that the settings name.

    Args:
        settings: of the registry.
        alone: nobody else may use them meanwhile, and the schema is brought up to date; otherwise a
            registry may serve beside it, and nothing is changed by opening.

    Raises:
        GraftError: UNAVAILABLE when they cannot be used, or somebody else uses them;
            INVALID_REQUEST when there is no catalogue to be read.
    """
    async with AsyncExitStack() as stack:
        if settings.postgres_url is not None:
            engine = await open_postgres(settings.postgres_url, 2, migrate=alone)
        else:
            if alone:
                stack.callback(os.close, lock_folder(settings.data_dir))
            elif not settings.database_path.is_file():
                raise _no_catalogue(settings)
            engine = await open_sqlite(settings.database_path, migrate=alone)
        database = Database(engine, Pulse())
        stack.push_async_callback(database.close)
        if alone and settings.postgres_url is not None:
            await _check_alone(database, settings.postgres_url)
        blobs = open_blobs(settings)
        stack.push_async_callback(blobs.close)
        yield Opened(database, blobs)


async def _check_alone(database: Database, url: str) -> None:
    others = await database.read(lambda connection: connection.scalar(_REGISTRIES))
    if others:
        raise GraftError(
            Reason.UNAVAILABLE,
            f"{others} connections of registries are open to {place_of(url)}",
            next_step="Stop all registries first: kubectl scale --replicas=0, or SIGTERM.",
        )


def _no_catalogue(settings: RegistrySettings) -> GraftError:
    return GraftError(
        Reason.INVALID_REQUEST,
        f"There is no catalogue at {settings.database_path}",
        next_step="Set GRAFT_REGISTRY_DATA_DIR or GRAFT_REGISTRY_DATABASE as the registry has them.",
    )
