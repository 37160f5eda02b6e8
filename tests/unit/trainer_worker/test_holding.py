"""A worker holds its uploaded data while it trains, and goes on where it cannot."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest.mock import Mock

import graft
from graft.digests import digest_bytes

from services.trainer.run.background import BackgroundLoop
from services.trainer.run.holding import held_data
from services.trainer.run.settings import read_settings
from tests.support.registry import running_registry

DATA = digest_bytes(b"rows")


async def test_the_data_is_held_as_long_as_the_attempt_goes_on(tmp_path: Path) -> None:
    async with (
        running_registry(tmp_path / "registry") as registry,
        graft.Client(registry=registry.address) as client,
    ):
        settings = read_settings(
            {"GRAFT_WORKER_REGISTRY": registry.address, "GRAFT_WORKER_ATTEMPT": "2"},
            tmp_path / "spec.json",
        )
        loop, went_on = BackgroundLoop(), asyncio.Event()
        began = asyncio.Event()
        here = asyncio.get_running_loop()

        def train() -> None:
            with held_data([DATA], settings, loop, Mock()):
                here.call_soon_threadsafe(began.set)
                asyncio.run_coroutine_threadsafe(went_on.wait(), here).result()

        training = asyncio.create_task(asyncio.to_thread(train))
        await began.wait()
        (lease,) = await client.operations.leases()
        assert (lease.purpose, lease.targets) == ("train", (DATA,))
        assert lease.holder == "namespaces/default/jobs/local/2"
        went_on.set()
        await training
        assert await client.operations.leases() == []
        await asyncio.to_thread(loop.close)


async def test_a_registry_that_is_away_stops_no_training(tmp_path: Path) -> None:
    async with running_registry(tmp_path / "registry") as registry:
        address = registry.address
    settings = read_settings({"GRAFT_WORKER_REGISTRY": address}, tmp_path / "spec.json")
    loop, reporter, trained = BackgroundLoop(), Mock(), []

    def train() -> None:
        with held_data([DATA], settings, loop, reporter):
            trained.append(True)

    await asyncio.to_thread(train)
    assert trained
    assert "is not held" in reporter.log.call_args.args[0]
    await asyncio.to_thread(loop.close)
