"""A service with the fake engine and an in-memory registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.inference import RunningInference, start_inference


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[RunningInference]:
    """Four slots, and nothing registered yet."""
    async with start_inference(tmp_path) as running:
        yield running
