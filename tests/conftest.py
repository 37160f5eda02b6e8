"""Fixtures that tests of several services share."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import graft
import pytest
import pytest_asyncio

from tests.support.models import REPOSITORY, make_adapter, make_base
from tests.support.objects import ObjectStore, object_store_server
from tests.support.postgres import PostgresServer
from tests.support.spread import Spread, file_of, turn
from tests.support.stack import Stack, graft_up

if TYPE_CHECKING:
    from tests.support.engines import SharedEngine


def pytest_configure() -> None:
    """Trainers of tests have no processes that wait for a job, but where they are what is tested."""
    os.environ.setdefault("GRAFT_TRAINER_WARM_WORKERS", "0")
    # A GPU host may bring a Python without it.
    with suppress(ImportError):
        from hypothesis import HealthCheck, settings

        # How long an example takes says nothing of what is tested, only of the machine.
        settings.register_profile(
            "graft", deadline=None, suppress_health_check=[HealthCheck.too_slow]
        )
        settings.load_profile("graft")


# Modules that one import of a large library brings; objects of fewer are soon looked through.
_MANY_MODULES = 200


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Takes what libraries hold out of the garbage collector's sight: trainers have it look at everything, often."""
    known = item.config.stash.get(_FROZEN_MODULES, 0)
    if len(sys.modules) - known > _MANY_MODULES:
        gc.collect()
        gc.freeze()
        item.config.stash[_FROZEN_MODULES] = len(sys.modules)


_FROZEN_MODULES = pytest.StashKey[int]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first."""
    items.sort(key=lambda item: turn(file_of(item.nodeid)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """How `make test` spreads files over its processes."""
    return Spread(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_unconfigure() -> None:
    """What libraries hold is freed at the end, as they expect."""
    gc.unfreeze()


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


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_engine(tiny_base: Path) -> AsyncIterator[SharedEngine]:
    """Two adapters beside tiny_base, in float32, so that answers can be compared token by token."""
    # Not for those who run without an inference service's packages.
    from services.inference.engines.vllm_arguments import VllmOptions
    from tests.support.engines import SharedEngine

    engine = SharedEngine(
        VllmOptions(
            base=tiny_base,
            max_adapters=2,
            max_lora_rank=16,
            max_model_len=256,
            max_num_seqs=16,
            dtype="float32",
            quantization=None,
            gpu_memory_utilization=0.5,
            cpu_kv_cache_gib=1,
            # Compiled as a user's is, where minutes do not count: make chaos, make soak.
            enforce_eager="GRAFT_TEST_COMPILED" not in os.environ,
            enable_prefix_caching=True,
            seed=0,
            trust_remote_code=False,
        )
    )
    with warnings.catch_warnings():
        # Importing vLLM warns of its own and of its libraries' deprecations.
        warnings.simplefilter("ignore")
        await engine.start()
    try:
        yield engine
    finally:
        await engine.really_stop()
        # Sockets close in callbacks of the loop.
        await asyncio.sleep(0)


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
