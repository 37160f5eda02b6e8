"""A cluster for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.kube_api import kube_cluster
from tests.support.kube_api.lab import Lab


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """A cluster, and what is needed to start trainers on it."""
    lab = Lab(tmp_path)
    async with kube_cluster(tmp_path / "cluster", lab.start_pod) as lab.cluster:
        yield lab
