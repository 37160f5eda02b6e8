"""Starts the registry: `python -m services.registry`, configured by GRAFT_REGISTRY_*."""

from __future__ import annotations

import sys

import uvloop
from graft.errors import GraftError

from services.common.logs import configure_logs, get_logger
from services.common.server import serve_until_signal
from services.registry.config import RegistrySettings
from services.registry.server import RegistryServer


def main() -> int:
    """Serves until SIGTERM or SIGINT; 0 after a drain, 1 when it cannot start."""
    settings = RegistrySettings()
    configure_logs("registry", settings.log_level, settings.log_format)
    server = RegistryServer(settings)
    try:
        uvloop.run(serve_until_signal(server.start, server.stop))
    except GraftError as error:
        get_logger().error("cannot start", error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
