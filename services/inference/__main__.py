"""Starts inference: `python -m services.inference`, configured by GRAFT_INFERENCE_* variables."""

from __future__ import annotations

import sys

from services.common.main import run_service
from services.inference.config import InferenceSettings
from services.inference.server import InferenceServer

# The engine's processes import this module anew: without the guard each would start a service.
if __name__ == "__main__":
    sys.exit(run_service("inference", InferenceSettings, InferenceServer, sys.argv[1:]))
