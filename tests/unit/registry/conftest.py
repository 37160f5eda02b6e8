"""A registry with a base and an adapter, and clients for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from graft.registry.v1 import registry_service_pb2 as pb

from services.registry.server import RegistryServer
from tests.support.models import make_adapter, make_base
from tests.support.registry import RegistryCalls, registry_calls, running_registry


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk."""
    return make_base(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    """An adapter for it."""
    return make_adapter(tmp_path_factory.mktemp("adapters") / "one", base_folder)


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
async def base(calls: RegistryCalls, base_folder: Path) -> pb.Base:
    """The tiny model, recorded, with the adapter "bot" of it."""
    recorded = await calls.create_base(base_folder)
    await calls.create_adapter()
    return recorded
