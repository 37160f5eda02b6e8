"""Runs the inference service until SIGTERM."""

from __future__ import annotations

import uvloop

from services.common.logs import configure_logs
from services.common.server import serve_until_signal
from services.inference.config import InferenceSettings
from services.inference.server import InferenceServer


def main() -> None:
    """Reads the settings, builds and serves."""
    # base comes from the environment.
    settings = InferenceSettings()  # type: ignore[call-arg]
    configure_logs("inference", settings.log_level, settings.log_format)

    async def serve() -> None:
        server = InferenceServer(settings)
        await serve_until_signal(server.start, server.stop)

    uvloop.run(serve())


# The engine's processes import this module anew: without the guard each would start a service.
if __name__ == "__main__":
    main()
