"""Clients against fakes and a real registry, all in the test's own event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import graft
import pytest

from tests.support.fakes import FakeInference, FakeTrainer, serving
from tests.support.registry import running_registry

NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("GRAFT_REGISTRY", "GRAFT_TRAINER", "GRAFT_INFERENCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))


@pytest.fixture
def trainer() -> FakeTrainer:
    return FakeTrainer()


@pytest.fixture
def inference() -> FakeInference:
    return FakeInference()


@pytest.fixture
async def client(trainer: FakeTrainer, inference: FakeInference) -> AsyncIterator[graft.Client]:
    """Speaks to the fakes."""
    async with (
        serving(trainer=trainer, inference=inference) as address,
        graft.Client(registry=NOWHERE, trainer=address, inference=address) as client,
    ):
        yield client


@pytest.fixture
async def registry_client(tmp_path: Path) -> AsyncIterator[graft.Client]:
    """Speaks to a real registry."""
    async with (
        running_registry(tmp_path / "registry") as server,
        graft.Client(registry=server.address, actor="ann@desk") as client,
    ):
        yield client
