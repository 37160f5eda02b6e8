"""vLLM's own metrics beside the service's: there at one endpoint, named as the dashboard names them."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from services.inference.registry.memory import MemoryRegistry
from tests.support.engines import SharedEngine
from tests.support.inference import BASE, FINGERPRINT, adapter_resource, start_inference
from tests.support.models import REPOSITORY, make_adapter
from tests.support.promql import metrics_of

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.engine]
DEPLOYED = REPOSITORY / "deploy/observability"


def _queries() -> Iterator[str]:
    dashboard: dict[str, Any] = json.loads((DEPLOYED / "grafana/graft-inference.json").read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for group in yaml.safe_load((DEPLOYED / "alerts.yaml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def _read(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        return str(answer.read().decode())


async def test_vllms_metrics_are_beside_ours_and_do_not_grow_with_the_adapters(
    vllm_engine: SharedEngine, tiny_base: Path, tmp_path: Path
) -> None:
    registry = MemoryRegistry(FINGERPRINT)
    async with start_inference(
        tmp_path, engine=vllm_engine, registry=registry, base=tiny_base
    ) as service:
        url = f"http://{service.server.grpc.metrics_address}/metrics"
        counts = []
        for number in range(3):
            name = adapter_resource(f"bot-{number}")
            await registry.add_adapter(name, BASE)
            folder = make_adapter(tmp_path / f"adapter-{number}", tiny_base, seed=number)
            await registry.add_version(name, folder)
            await service.ask(f"bot-{number}:1", max_tokens=4)
            text = await asyncio.to_thread(_read, url)
            samples = [
                sample
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            ]
            counts.append(sum(sample.name.startswith("vllm:") for sample in samples))
    names = {sample.name for sample in samples}
    wanted = set().union(*(metrics_of(query) for query in _queries()))
    assert {name for name in wanted if name.startswith("vllm:")} - names == set()
    assert "graft_inference_requests_total" in names
    assert len(set(counts)) == 1
    lines = [line for line in text.splitlines() if line.startswith("vllm:") and "bot-" in line]
    # Ours: what runs now, and not every combination that ever was.
    assert [line.partition("{")[0] for line in lines] == ["vllm:lora_requests_info"]
    # What endpoint pickers of the Gateway API inference extension read of a vLLM by default.
    assert names >= {
        "vllm:num_requests_waiting",
        "vllm:num_requests_running",
        "vllm:kv_cache_usage_perc",
        "vllm:lora_requests_info",
        "vllm:cache_config_info",
    }
    config = next(one for one in samples if one.name == "vllm:cache_config_info")
    assert int(config.labels["block_size"]) > 0
    assert int(config.labels["num_gpu_blocks"]) > 0
