"""Starts the registry: `python -m services.registry`, configured by GRAFT_REGISTRY_* variables."""

from __future__ import annotations

import sys

from services.common.main import run_service
from services.registry.config import RegistrySettings
from services.registry.server import RegistryServer

if __name__ == "__main__":
    sys.exit(run_service("registry", RegistrySettings, RegistryServer, sys.argv[1:]))
