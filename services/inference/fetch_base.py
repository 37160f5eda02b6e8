"""Fetches one version of the base from the registry before the service starts: an init container's work.

It reads the service's own variables: `python -m services.inference.fetch_base`. What was fetched stays; the
folder appears whole or not at all.
"""

from __future__ import annotations

import asyncio
import sys

from graft.client import Client
from graft.errors import GraftError, UnavailableError
from pydantic import Field, ValidationError
from pydantic_settings import SettingsConfigDict

from services.common.logs import configure_logs, get_logger
from services.common.main import EXIT_CANNOT_START, EXIT_USAGE
from services.inference.config import InferenceSettings

_RETRY_S = 2.0


class FetchSettings(InferenceSettings):
    """The service's, and which version."""

    model_config = SettingsConfigDict(env_prefix="GRAFT_INFERENCE_")

    base_revision: int = Field(ge=1, description="version of the base to fetch into its folder")


async def fetch(settings: FetchSettings) -> None:
    """Returns when settings.base holds the version; waits for a registry that is away.

    Raises:
        GraftError: VERSION_NOT_FOUND, BASE_NOT_FOUND, DIGEST_MISMATCH.
    """
    target = settings.base
    if target.is_dir() and any(target.iterdir()):
        get_logger().info("the base is there already", folder=str(target))
        return
    async with Client(
        registry=settings.registry_address, namespace=settings.namespace, actor="inference"
    ) as client:
        while True:
            try:
                found = await client.base_versions.pull(
                    settings.base_name, settings.base_revision, target
                )
                break
            except UnavailableError as error:
                get_logger().warning("waiting for the registry", error=error.message)
                await asyncio.sleep(_RETRY_S)
    get_logger().info("the base is fetched", version=found.name, fingerprint=found.fingerprint)


def main() -> int:
    """0 when it is there, 1 when it cannot be had, 2 for wrong settings."""
    try:
        settings = FetchSettings()  # type: ignore[call-arg]
    except ValidationError as error:
        print(f"The base cannot be fetched with these settings:\n{error}", file=sys.stderr)
        return EXIT_USAGE
    configure_logs("inference", settings.log_level, settings.log_format)
    try:
        asyncio.run(fetch(settings))
    except GraftError as error:
        print(f"The base cannot be fetched: {error}", file=sys.stderr)
        return EXIT_CANNOT_START
    return 0


if __name__ == "__main__":
    sys.exit(main())
