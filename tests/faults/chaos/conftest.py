"""The service under attack, and the table of what happened."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.chaos.service import Chaos, chaos_service
from tests.faults.chaos.table import Table
from tests.support.engines import SharedEngine
from tests.support.models import REPOSITORY

_TABLE = pytest.StashKey[Table]()


@pytest.fixture
def table(pytestconfig: pytest.Config) -> Table:
    """Of this run."""
    return pytestconfig.stash.setdefault(_TABLE, Table())


@pytest_asyncio.fixture(loop_scope="session")
async def chaos(vllm_engine: SharedEngine, tiny_base: Path, tmp_path: Path) -> AsyncIterator[Chaos]:
    """A service on the shared engine of two slots; its registry admits everything."""
    async with chaos_service(vllm_engine, tiny_base, tmp_path) as running:
        yield running


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The table, where both sides were run."""
    table = config.stash.get(_TABLE, None)
    if table is None or not table.compares:
        return
    terminalreporter.section("chaos: stock vLLM and Graft")
    for line in table.lines():
        terminalreporter.line(line)
    path = REPOSITORY / "out" / "chaos.json"
    table.write(path)
    terminalreporter.line(f"\nwritten to {path.relative_to(REPOSITORY)}")
