"""What an operator sees: figures of each service, and one request's id in every log on its way."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path

import graft
import pytest

from tests.support.models import make_adapter
from tests.support.stack import Stack

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]
FIGURES = {
    "registry": (
        "graft_registry_versions",
        "graft_registry_watch_lag_events",
        "graft_registry_alias_moves_total",
        "graft_rpc_calls_total",
    ),
    "trainer": (
        'graft_trainer_jobs{state="RUNNING"}',
        "graft_trainer_slots",
        "graft_rpc_calls_total",
    ),
    "inference": (
        'graft_inference_requests_total{adapter="watched"',
        'graft_inference_time_to_first_token_seconds_count{adapter="watched"',
        'graft_inference_time_per_output_token_seconds_count{adapter="watched"',
        'graft_inference_completion_tokens_total{adapter="watched"',
        'graft_inference_in_flight{adapter="watched"',
        'graft_inference_swap_stage_seconds_count{stage="fetch"}',
        'graft_inference_swap_stage_seconds_count{stage="load"}',
        'graft_inference_residency{state="ready"}',
        "graft_inference_watch_revision",
        "graft_inference_watch_lag_seconds",
        "vllm:num_requests_running{",
        "vllm:kv_cache_usage_perc{",
    ),
}


async def test_every_service_shows_its_figures_and_a_request_id_travels(
    stack: Stack, client: graft.Client, example_base: Path, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "a", example_base, scale=0.02)
    await client.adapters.push("watched", folder, base=example_base)
    answer = await client.generate("watched:1", "Hi", max_tokens=4, request_id="find-me-again")
    assert answer.token_ids
    addresses = json.loads((stack.home / "endpoints.json").read_text())["metrics"]
    for service, names in FIGURES.items():
        url = f"http://{addresses[service]}/metrics"
        text = await asyncio.to_thread(_read, url)
        assert [name for name in names if name not in text] == [], service


def _read(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        return str(answer.read().decode())


async def test_a_refused_request_is_logged_under_its_id_by_both_services_that_it_met(
    stack: Stack, client: graft.Client
) -> None:
    with pytest.raises(graft.NotFoundError):
        await client.generate("absent", "Hi", max_tokens=4, request_id="lost-and-logged")
    for service in ("inference", "registry"):
        log = (stack.home / "logs" / f"{service}.log").read_text()
        lines = [line for line in log.splitlines() if "lost-and-logged" in line]
        assert any("ADAPTER_NOT_FOUND" in line for line in lines), service
