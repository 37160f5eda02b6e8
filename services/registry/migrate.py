"""`python -m services.registry.migrate`: brings the database's schema up to date, and ends. Serves nothing.

The registry does the same at its start. This is for where the time of a start is limited, as by the
probes of a pod: an init container has none, so that no long migration is ended half way.
"""

from __future__ import annotations

import asyncio
import sys

from graft.errors import GraftError
from pydantic import ValidationError

from services.common.logs import configure_logs, get_logger
from services.common.main import EXIT_CANNOT_START, EXIT_USAGE
from services.registry.catalogue.postgres import open_postgres, place_of
from services.registry.catalogue.sqlite import open_sqlite
from services.registry.config import RegistrySettings


def main() -> int:
    """Migrates what GRAFT_REGISTRY_DATABASE names.

    Returns:
        0 when the schema is this Graft's, 1 when it cannot be, 2 for wrong settings.
    """
    try:
        settings = RegistrySettings()
    except ValidationError as error:
        for problem in error.errors():
            name = problem["loc"][0] if problem["loc"] else ""
            print(f"GRAFT_REGISTRY_{str(name).upper()}: {problem['msg']}", file=sys.stderr)
        return EXIT_USAGE
    configure_logs("registry", settings.log_level, settings.log_format)
    try:
        place = asyncio.run(migrate(settings))
    except GraftError as error:
        get_logger().error("cannot migrate", reason=error.reason.value, error=str(error))
        return EXIT_CANNOT_START
    get_logger().info("the schema is up to date", database=place)
    return 0


async def migrate(settings: RegistrySettings) -> str:
    """Of several that do it at once, one does and the others wait. Returns which database it was.

    Raises:
        GraftError: UNAVAILABLE, when the database cannot be used or is a newer Graft's.
    """
    url = settings.postgres_url
    engine = await (open_sqlite(settings.database_path) if url is None else open_postgres(url, 2))
    await engine.dispose()
    return str(settings.database_path) if url is None else place_of(url)


if __name__ == "__main__":
    sys.exit(main())
