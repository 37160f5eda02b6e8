"""One running Graft for all end-to-end tests, with the example base and the real engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import graft
import pytest

from tests.support.models import REPOSITORY
from tests.support.stack import Stack, graft_up

SHARED_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def example_base() -> Path:
    return REPOSITORY / "examples/base"


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


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets that lie beside the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real data sets do not lie beside this checkout (../shared/data)")
    return SHARED_DATA
