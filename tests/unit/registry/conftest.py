"""A registry with a base and an adapter, and clients for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from graft.registry.v1 import registry_service_pb2 as pb

from services.registry.server import RegistryServer
from tests.support.models import make_adapter
from tests.support.registry import RegistryCalls, registry_calls, running_registry


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> list[Path]:
    """Four adapters of the tiny base; treat them as read-only."""
    root = tmp_path_factory.mktemp("adapters")
    return [make_adapter(root / str(seed), tiny_base, seed=seed) for seed in range(4)]


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[RegistryServer]:
    """An empty registry."""
    async with running_registry(tmp_path / "registry") as server:
        yield server


@pytest.fixture
async def calls(registry: RegistryServer) -> AsyncIterator[RegistryCalls]:
    """Calls to it."""
    async with registry_calls(registry.address) as client:
        yield client


@pytest.fixture
async def base(calls: RegistryCalls, tiny_base: Path) -> pb.Base:
    """The tiny model, recorded, with the adapter "bot" of it."""
    recorded = await calls.create_base(tiny_base)
    await calls.create_adapter()
    return recorded


@pytest.fixture
async def versions(calls: RegistryCalls, base: pb.Base, adapters: list[Path]) -> list[pb.Version]:
    """Two versions of "bot"."""
    return [await calls.commit(folder, base.fingerprint.digest) for folder in adapters[:2]]
