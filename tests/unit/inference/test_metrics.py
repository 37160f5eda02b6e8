"""What a scrape of the inference service shows, and that it cannot grow without bound."""

from __future__ import annotations

import asyncio
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from graft.channel import rpc_errors
from graft.errors import GraftError
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.inference.metrics import InferenceMetrics, MetricsOptions
from services.inference.thrash import Thrash
from services.inference.version_series import VersionSeriesTable
from tests.support.inference import RunningInference, question, start_inference
from tests.support.waiting import eventually

PREFIX = "graft_inference_"


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def scrape(service: RunningInference) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of a real scrape, by name and labels."""
    text = await asyncio.to_thread(_read, f"http://{service.server.grpc.metrics_address}/metrics")
    return {
        (sample.name.removeprefix(PREFIX), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _read(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        return str(answer.read().decode())


async def value(service: RunningInference, name: str, **labels: str) -> float | None:
    return (await scrape(service)).get((name, frozenset(labels.items())))


async def stream(service: RunningInference, model: str, *, max_tokens: int = 8) -> None:
    async for _ in service.stub.StreamGenerate(question(model, max_tokens=max_tokens)):
        pass


def _list(text: str) -> list[str]:
    """As endpoint pickers read a label of vllm:lora_requests_info."""
    return [name.strip() for name in text.split(",") if name.strip()]


async def test_a_gateway_reads_which_adapters_are_there_by_the_names_that_clients_use(
    service: RunningInference,
) -> None:
    async def info() -> dict[str, str]:
        samples = [
            dict(labels)
            for (name, labels) in await scrape(service)
            if name == "vllm:lora_requests_info"
        ]
        assert len(samples) == 1
        return samples[0]

    assert await info() == {
        "max_lora": "4", "running_lora_adapters": "", "waiting_lora_adapters": "",
    }  # fmt: skip
    await service.publish("bot", "one", "two", "three")
    await service.promote("bot", 1)
    await service.promote("bot", 2, "canary")
    for model in ("bot", "bot@canary", "bot:3"):
        await service.ask(model)
    assert _list((await info())["running_lora_adapters"]) == ["bot", "bot:3", "bot@canary"]
    await service.publish("slow", "x")
    service.fake.load_gate.clear()
    asking = asyncio.create_task(service.ask("slow"))
    await eventually(lambda: service.fake.loading == 1, "the load")
    assert _list((await info())["waiting_lora_adapters"]) == ["slow"]
    service.fake.load_gate.set()
    await asking
    assert "slow" in _list((await info())["running_lora_adapters"])
    # More than there are slots are never shown as running.
    await service.publish("last", "y")
    await service.ask("last")
    running = _list((await info())["running_lora_adapters"])
    assert len(running) == 4
    assert "last" in running


async def test_what_replicas_are_scaled_by_follows_the_requests(tmp_path: Path) -> None:
    async with start_inference(tmp_path, max_in_flight=1) as service:
        assert await value(service, "in_flight_tokens") == 0
        assert await value(service, "queue_age_seconds") == 0
        service.fake.hold(after_tokens=2)
        asking = [asyncio.create_task(stream(service, "tiny", max_tokens=40)) for _ in range(2)]

        async def waits() -> bool:
            return await value(service, "queue_waiting") == 1

        await eventually(waits, "the queue")
        # The prompt's five tokens and its special one, and an answer as long as it may be.
        assert await value(service, "in_flight_tokens") == 6 + 40
        first = await value(service, "queue_age_seconds")
        assert first is not None

        async def older() -> bool:
            return (await value(service, "queue_age_seconds") or 0.0) > first

        await eventually(older, "the age")
        await service.fake.release()
        await asyncio.gather(*asking)
        assert await value(service, "in_flight_tokens") == 0
        assert await value(service, "queue_age_seconds") == 0


async def test_a_scrape_tells_of_each_version_by_itself(service: RunningInference) -> None:
    await service.publish("bot", "one", "two")
    await stream(service, "bot:1", max_tokens=5)
    await stream(service, "bot:1", max_tokens=3)
    await stream(service, "bot:2", max_tokens=4)
    await stream(service, "tiny", max_tokens=2)
    seen = await scrape(service)

    def of(name: str, adapter: str, version: str, **more: str) -> float:
        labels = {"adapter": adapter, "version": version, **more}
        return seen[name, frozenset(labels.items())]

    assert of("requests_total", "bot", "1", outcome="ok") == 2
    assert of("completion_tokens_total", "bot", "1") == 8
    assert of("prompt_tokens_total", "bot", "2") == len("hello") + 1
    assert of("completion_tokens_total", "tiny", "") == 2
    assert of("loads_total", "bot", "2") == 1
    assert of("in_flight", "bot", "1") == 0
    for name in (
        "time_to_first_token_seconds",
        "time_per_output_token_seconds",
        "longest_token_gap_seconds",
        "queue_seconds",
    ):
        assert of(f"{name}_count", "bot", "1") == 2, name
        assert of(f"{name}_count", "bot", "2") == 1, name


async def test_requests_on_the_engine_are_counted_by_version(service: RunningInference) -> None:
    await service.publish("bot", "one", "two")
    service.fake.hold(after_tokens=1)
    calls = [aiter(service.stub.StreamGenerate(question(f"bot:{each}"))) for each in (1, 2, 2)]
    for call in calls:
        await anext(call)
    assert await value(service, "in_flight", adapter="bot", version="1") == 1
    assert await value(service, "in_flight", adapter="bot", version="2") == 2
    await service.fake.release()
    for call in calls:
        async for _ in call:
            pass
    assert await value(service, "in_flight", adapter="bot", version="2") == 0


async def test_more_versions_than_the_bound_share_one_series_and_lose_no_count(
    tmp_path: Path,
) -> None:
    async with start_inference(tmp_path, metric_versions=2) as service:
        for number in range(4):
            await service.publish(f"bot-{number}", "one")
            await stream(service, f"bot-{number}:1")
        seen = await scrape(service)
    requests = {
        dict(labels)["adapter"]: count
        for (name, labels), count in seen.items()
        if name == "requests_total" and dict(labels)["outcome"] == "ok"
    }
    assert requests == {"bot-0": 1, "bot-1": 1, "other": 2}


async def test_sixty_versions_leave_no_more_series_than_the_bound_allows(
    tmp_path: Path,
) -> None:
    async with start_inference(tmp_path, metric_versions=6) as service:
        sizes = []
        for number in range(60):
            await service.publish(f"bot-{number}", "one")
            await stream(service, f"bot-{number}:1")
            sizes.append(len(await scrape(service)))
        assert len(set(sizes[20:])) == 1
        seen = await scrape(service)
    names = {dict(labels).get("adapter") for _, labels in seen} - {None}
    # The six seen last, and nobody had to share.
    assert names == {f"bot-{number}" for number in range(54, 60)}


async def test_what_is_resident_keeps_its_series_when_others_come(tmp_path: Path) -> None:
    async with start_inference(tmp_path, metric_versions=1, metric_linger_s=0.0) as service:
        await service.publish("first", "one")
        await service.publish("second", "one")
        await stream(service, "first:1")
        await stream(service, "second:1")
        assert await value(service, "loads_total", adapter="first", version="1") == 1
        assert await value(service, "loads_total", adapter="other", version="other") == 1


async def test_an_eviction_and_a_quick_return_count_as_thrash(service: RunningInference) -> None:
    for number in range(5):
        await service.publish(f"bot-{number}", "one")
        await service.ask(f"bot-{number}:1")
    assert await value(service, "evictions_total", tier="gpu", why="room") == 1
    assert await value(service, "thrash_total", tier="gpu") == 0
    await service.ask("bot-0:1")
    assert await value(service, "thrash_total", tier="gpu") == 1
    assert await value(service, "evictions_total", tier="gpu", why="room") == 2
    assert await value(service, "loads_total", adapter="bot-0", version="1") == 2


async def test_a_version_that_was_replaced_is_no_thrash(service: RunningInference) -> None:
    await service.publish("bot", "one", "two")
    for number in (1, 2):
        await service.promote("bot", number)
        await eventually(partial(_serves, service, number), "the swap")
    await eventually(lambda: len(service.fake.loaded) == 1, "the unload")
    assert await value(service, "evictions_total", tier="gpu", why="retired") == 1
    assert await value(service, "thrash_total", tier="gpu") == 0


async def _serves(service: RunningInference, number: int) -> bool:
    return (await service.ask("bot")).provenance.version.endswith(f"/{number}")


async def test_a_tier_says_how_much_it_holds(service: RunningInference) -> None:
    (version,) = await service.publish("bot", "one")
    await service.ask("bot:1")
    assert await value(service, "tier_versions", tier="gpu") == 1
    assert await value(service, "tier_bytes", tier="gpu") == version.size_bytes


async def test_a_refusal_is_counted_by_its_reason_and_makes_no_series_of_its_name(
    service: RunningInference,
) -> None:
    for number in range(20):
        with pytest.raises(GraftError), rpc_errors("the service"):
            await service.ask(f"absent-{number}")
    assert await value(service, "refusals_total", reason="ADAPTER_NOT_FOUND") == 20
    assert not any("absent" in str(labels) for _, labels in await scrape(service))


async def test_a_wait_for_a_turn_shows_by_version() -> None:
    registry = CollectorRegistry()
    metrics = InferenceMetrics(registry, MetricsOptions())
    metrics.waited_turn("bot", "1", 0.3)
    name, labels = f"{PREFIX}fairness_wait_seconds_sum", {"adapter": "bot", "version": "1"}
    assert registry.get_sample_value(name, labels) == pytest.approx(0.3)


def test_series_of_what_has_left_linger_and_then_go() -> None:
    clock, registry = Clock(), CollectorRegistry()
    table = VersionSeriesTable(registry, most=8, linger_s=300, clock=clock)
    table.hold("bot", "1").loads.inc()
    clock.now_s += 3000
    assert b'"bot"' in generate_latest(registry)
    table.release("bot", "1")
    clock.now_s += 299
    assert b'"bot"' in generate_latest(registry)
    clock.now_s += 2
    assert b'"bot"' not in generate_latest(registry)


def test_a_version_that_never_came_onto_the_engine_does_not_keep_its_place() -> None:
    clock, registry = Clock(), CollectorRegistry()
    table = VersionSeriesTable(registry, most=1, linger_s=300, clock=clock)
    table.series("broken", "1").fairness_wait.observe(1)
    table.series("good", "1").fairness_wait.observe(1)
    text = generate_latest(registry).decode()
    assert 'adapter="good"' in text
    assert 'adapter="broken"' not in text


def test_a_late_return_is_no_thrash() -> None:
    clock = Clock()
    thrash = Thrash(60, clock)
    thrash.evicted("gpu", "bot/1")
    clock.now_s += 61
    assert not thrash.brought("gpu", "bot/1")
    thrash.evicted("gpu", "bot/1")
    clock.now_s += 59
    assert thrash.brought("gpu", "bot/1")
    assert not thrash.brought("gpu", "bot/1")
    thrash.evicted("gpu", "bot/1")
    assert not thrash.brought("disk", "bot/1")
