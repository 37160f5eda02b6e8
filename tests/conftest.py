"""Fixtures that tests of several services share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import graft
import pytest

from tests.support.models import REPOSITORY, make_adapter, make_base
from tests.support.objects import ObjectStore, object_store_server
from tests.support.postgres import PostgresServer
from tests.support.stack import Stack, graft_up


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of two layers and 64 features with a real tokenizer; treat it as read-only."""
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="session")
def tiny_adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rank 8 adapter of tiny_base; treat it as read-only."""
    return make_adapter(tmp_path_factory.mktemp("adapters") / "tiny", tiny_base)


@pytest.fixture(scope="session")
def example_base() -> Path:
    return REPOSITORY / "examples/base"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL for all tests; each takes a database of its own with create_database()."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """An S3 server; take a bucket of your own."""
    with object_store_server() as running:
        yield running


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, example_base: Path) -> Iterator[Stack]:
    """Registry, trainer with two slots, and inference on the example base."""
    home = tmp_path_factory.mktemp("home")
    with graft_up(home, "--base", example_base, "--slots", "2") as running:
        yield running


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[graft.Client]:
    async with graft.Client(
        registry=stack.registry, trainer=stack.trainer, inference=stack.inference, actor="tester"
    ) as client:
        yield client
