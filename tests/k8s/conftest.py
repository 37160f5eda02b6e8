"""Graft in a namespace of its own on the cluster that KUBECONFIG names, for `make test-k8s`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import graft
import pytest
import pytest_asyncio

from tests.k8s.installation import ClusterError, Installation, Settings


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """Applied and ready; removed at the end."""
    found, problem = _installed()
    if found is None:
        pytest.fail(problem, pytrace=False)
    try:
        yield found
    finally:
        found.__exit__(None, None, None)


def _installed() -> tuple[Installation | None, str]:
    """What was applied; else why not."""
    try:
        return Installation(Settings.from_environment()).__enter__(), ""
    except ClusterError as error:
        return None, str(error)


@pytest_asyncio.fixture
async def client(installation: Installation) -> AsyncIterator[graft.Client]:
    """A client of it, through kubectl's port forwarding."""
    with installation.addresses() as (registry, trainer, inference):
        async with graft.Client(
            registry=registry, trainer=trainer, inference=inference, actor="test-k8s"
        ) as found:
            yield found
