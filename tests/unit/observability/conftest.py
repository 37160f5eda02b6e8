"""A service on the fake engine to which everything has happened that its metrics tell of."""

from __future__ import annotations

import asyncio
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from graft.channel import rpc_errors
from graft.errors import GraftError
from prometheus_client.parser import text_string_to_metric_families

from services.inference.config import InferenceSettings
from services.inference.engines.beside import with_second
from services.inference.engines.fake import FakeEngine
from tests.support.inference import RunningInference, adapter_resource, question, start_inference
from tests.support.waiting import eventually


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of all samples in a scrape."""
    with asyncio.Runner() as runner:
        text = runner.run(_scraped(tmp_path_factory.mktemp("service")))
    families = text_string_to_metric_families(text)
    return {sample.name for family in families for sample in family.samples}


async def _scraped(folder: Path) -> str:
    # The second is never started: its metrics are there all the same.
    engine = with_second(InferenceSettings(base=Path("tiny")), FakeEngine())
    async with start_inference(folder, engine=engine, max_adapters=4) as service:
        await _traffic(service)
        address = service.server.grpc.metrics_address
        return await asyncio.to_thread(_read, f"http://{address}/metrics")


async def _traffic(service: RunningInference) -> None:
    for number in range(5):
        await service.publish(f"bot-{number}", "one")
        async for _ in service.stub.StreamGenerate(question(f"bot-{number}:1")):
            pass
    await service.publish("moved", "one", "two")
    for number in (1, 2):
        await service.promote("moved", number)
        await eventually(partial(_serves, service, number), "the swap")
    await service.memory.set_alias(adapter_resource("moved"), "production", 2, {1: 50.0})
    await eventually(partial(_by_part, service), "the canary")
    with pytest.raises(GraftError), rpc_errors("the service"):
        await service.ask("absent")


async def _serves(service: RunningInference, number: int) -> bool:
    return (await service.ask("moved")).provenance.version.endswith(f"/{number}")


async def _by_part(service: RunningInference) -> bool:
    return (await service.ask("moved")).provenance.rollout_alias != ""


def _read(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        return str(answer.read().decode())


@pytest.fixture(scope="session")
def deployed() -> Path:
    """What an operator imports."""
    return Path(__file__).parents[3] / "deploy/observability"
