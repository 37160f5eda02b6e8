"""A service with the fake engine, and OpenAI's own client for its HTTP door."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from tests.support.inference import RunningInference, start_inference


def client_of(service: RunningInference, **options: object) -> openai.AsyncOpenAI:
    """A client that tries once."""
    given = {"api_key": "any", "max_retries": 0, **options}
    return openai.AsyncOpenAI(base_url=f"{service.server.http_address}/v1", **given)  # type: ignore[arg-type]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[RunningInference]:
    """Four slots, and nothing registered yet."""
    async with start_inference(tmp_path) as running:
        yield running


@pytest.fixture
async def client(service: RunningInference) -> AsyncIterator[openai.AsyncOpenAI]:
    """Speaks to it."""
    async with client_of(service) as made:
        yield made
