"""Promotions under requests: what is in flight ends on its version, nothing fails, nothing is mixed."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from graft.channel import rpc_errors
from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as pb
from prometheus_client import generate_latest

from tests.support.inference import RunningInference, adapter_resource, question, start_inference
from tests.support.waiting import eventually

READY = pb.RESIDENCY_STATE_READY
DRAINING = pb.RESIDENCY_STATE_DRAINING
FAILED = pb.RESIDENCY_STATE_FAILED


async def residency(service: RunningInference) -> dict[str, pb.ResidentAdapter]:
    """By "adapter/number"."""
    answer = await service.stub.GetResidency(pb.GetResidencyRequest())
    return {"/".join(each.version.split("/")[3::2]): each for each in answer.adapters}


async def states(service: RunningInference) -> dict[str, int]:
    return {name: each.state for name, each in (await residency(service)).items()}


async def serves(service: RunningInference, model: str, number: int) -> None:
    async def now() -> bool:
        return (await service.ask(model)).provenance.version.endswith(f"/{number}")

    await eventually(now, f"{model} -> {number}")


def metric(service: RunningInference, name: str, **labels: str) -> float | None:
    return service.server.metrics_registry.get_sample_value(f"graft_inference_{name}", labels)


async def test_production_is_resident_before_anybody_asks(tmp_path: Path) -> None:
    async with start_inference(tmp_path / "first") as first:
        await first.publish("bot", "one")
        await first.promote("bot", 1)
        async with start_inference(tmp_path / "second", registry=first.registry) as second:
            assert await states(second) == {"bot/1": READY}


async def test_a_promotion_moves_new_requests_and_unloads_the_old_version(
    service: RunningInference,
) -> None:
    await service.publish("bot", "one", "two")
    await service.promote("bot", 1)
    await serves(service, "bot", 1)
    await service.promote("bot", 2)
    await serves(service, "bot", 2)
    await eventually(lambda: len(service.fake.loaded) == 1, "the unload")
    assert await states(service) == {"bot/2": READY}


async def test_what_is_in_flight_ends_on_the_version_it_began_with(
    service: RunningInference,
) -> None:
    one, _ = await service.publish("bot", "one", "two")
    expected = (await service.ask("bot:1", max_tokens=20)).text
    await service.promote("bot", 1)
    await serves(service, "bot", 1)
    service.fake.hold(after_tokens=3)
    old = aiter(service.stub.StreamGenerate(question("bot", max_tokens=20)))
    first = await anext(old)
    await service.promote("bot", 2)
    await eventually(lambda: len(service.fake.loaded) == 2, "loading beside")

    async def draining() -> bool:
        return (await states(service)).get("bot/1") == DRAINING

    await eventually(draining, "the switch")
    assert (await residency(service))["bot/1"].in_flight == 1
    await service.fake.release()
    rest = [part async for part in old]
    assert first.text + "".join(part.text for part in rest) == expected
    assert rest[-1].provenance.version == one.name
    await eventually(lambda: len(service.fake.loaded) == 1, "the unload")


async def test_a_version_that_cannot_be_loaded_leaves_the_old_one_serving(
    service: RunningInference,
) -> None:
    await service.publish("bot", "one", "two")
    await service.promote("bot", 1)
    await serves(service, "bot", 1)
    service.fake.load_failures.append(GraftError(Reason.ADAPTER_UNUSABLE, "bad tensors in it"))
    await service.promote("bot", 2)

    async def failed() -> bool:
        return (await states(service)).get("bot/2") == FAILED

    await eventually(failed, "the failure")
    assert "bad tensors" in (await residency(service))["bot/2"].message
    assert (await service.ask("bot")).provenance.version.endswith("/1")
    with pytest.raises(GraftError, match="bad tensors"), rpc_errors("the service"):
        await service.ask("bot:2")


async def test_a_rank_above_the_engines_is_refused_by_name(service: RunningInference) -> None:
    await service.publish("bot", "one", rank=128)
    with pytest.raises(GraftError, match="rank 128") as caught, rpc_errors("the service"):
        await service.ask("bot:1")
    assert caught.value.reason is Reason.RANK_TOO_LARGE
    assert not service.fake.loaded


async def test_an_adapter_of_another_base_is_refused_by_name(service: RunningInference) -> None:
    await service.memory.add_adapter(adapter_resource("alien"), "namespaces/default/bases/big")
    with pytest.raises(GraftError, match="bases/big") as caught, rpc_errors("the service"):
        await service.ask("alien")
    assert caught.value.reason is Reason.WRONG_BASE


async def test_a_version_trained_on_other_weights_is_refused(service: RunningInference) -> None:
    await service.publish("bot", "one")
    folder = service.folder / "bot-one"
    await service.memory.add_version(
        adapter_resource("bot"), folder, base_fingerprint="sha256:" + "0" * 64
    )
    with pytest.raises(GraftError) as caught, rpc_errors("the service"):
        await service.ask("bot:2")
    assert caught.value.reason is Reason.WRONG_BASE
    assert (await service.ask("bot:1")).text


async def test_a_name_without_alias_means_production_and_else_the_newest(
    service: RunningInference,
) -> None:
    await service.publish("bot", "one", "two")
    await serves(service, "bot", 2)
    await service.publish("bot", "three")
    await serves(service, "bot", 3)
    await service.promote("bot", 1)
    await serves(service, "bot", 1)
    await serves(service, "bot:2", 2)


async def test_any_other_alias_follows_its_moves_too(service: RunningInference) -> None:
    await service.publish("bot", "one", "two")
    await service.promote("bot", 1, alias="canary")
    await serves(service, "bot@canary", 1)
    await service.promote("bot", 2, alias="canary")
    await serves(service, "bot@canary", 2)


async def test_many_first_requests_load_a_version_once(service: RunningInference) -> None:
    await service.publish("bot", "one")
    answers = await asyncio.gather(*(service.ask("bot:1") for _ in range(20)))
    assert len({answer.text for answer in answers}) == 1
    assert len(service.memory.fetched) == 2  # its two files


async def test_an_idle_version_makes_room_for_another(service: RunningInference) -> None:
    for number in range(6):
        await service.publish(f"bot-{number}", "one")
        await service.ask(f"bot-{number}")
    assert len(service.fake.loaded) == 4
    assert set(await states(service)) == {f"bot-{number}/1" for number in range(2, 6)}


async def test_a_flood_on_all_slots_cannot_keep_another_adapter_out(tmp_path: Path) -> None:
    async with start_inference(tmp_path, max_adapters=1, slot_timeout_s=20.0) as service:
        service.fake.limit_slots(1)
        await service.publish("loud", "one")
        await service.publish("quiet", "two")
        stop = asyncio.Event()

        async def flood() -> None:
            while not stop.is_set():
                await service.ask("loud")

        floods = [asyncio.create_task(flood()) for _ in range(4)]
        try:
            for _ in range(3):
                assert (await service.ask("quiet")).text
        finally:
            stop.set()
            await asyncio.gather(*floods)


async def test_a_request_that_gets_no_slot_is_refused_in_time(tmp_path: Path) -> None:
    async with start_inference(tmp_path, slot_timeout_s=0.1) as service:
        service.fake.limit_slots(1)
        await service.publish("loud", "one")
        await service.publish("quiet", "two")
        service.fake.hold(after_tokens=1)
        busy = aiter(service.stub.StreamGenerate(question("loud", max_tokens=50)))
        await anext(busy)
        with pytest.raises(GraftError) as caught, rpc_errors("the service"):
            await service.ask("quiet")
        assert caught.value.reason is Reason.OVERLOADED
        await service.fake.release()
        assert len([part async for part in busy]) > 0
        assert (await service.ask("quiet")).text


async def test_serving_goes_on_while_the_registry_is_away_and_no_event_is_missed(
    service: RunningInference,
) -> None:
    await service.publish("bot", "one", "two")
    await service.promote("bot", 1)
    await serves(service, "bot", 1)
    assert metric(service, "watch_connected") == 1
    service.memory.available = False
    await service.promote("bot", 2)
    assert (await service.ask("bot")).provenance.version.endswith("/1")
    await eventually(lambda: metric(service, "watch_connected") == 0, "the broken watch")
    service.memory.available = True
    await serves(service, "bot", 2)
    await eventually(lambda: metric(service, "watch_connected") == 1, "the watch")


async def test_the_lag_grows_while_the_registry_is_away_and_not_without_events(
    service: RunningInference,
) -> None:
    await service.publish("bot", "one")
    await eventually(lambda: metric(service, "watch_connected") == 1, "the watch")
    settled = metric(service, "watch_lag_seconds")
    assert settled is not None
    assert metric(service, "watch_lag_seconds") == settled
    service.memory.available = False
    await service.memory.break_watches()
    await eventually(lambda: metric(service, "watch_connected") == 0, "the broken watch")
    await eventually(lambda: (metric(service, "watch_lag_seconds") or 0) > settled + 0.1, "growth")
    service.memory.available = True
    await service.publish("bot", "two")
    await eventually(lambda: metric(service, "watch_connected") == 1, "the watch")
    lag_s = metric(service, "watch_lag_seconds")
    assert metric(service, "watch_lag_seconds") == lag_s


async def test_only_what_moved_counts_as_moved(service: RunningInference) -> None:
    await service.publish("bot", "one", "two")
    await service.promote("bot", 1)
    await serves(service, "bot", 1)
    # Both are there before the first is acted upon: the name means again what it meant.
    await service.promote("bot", 2)
    await service.promote("bot", 1)
    await eventually(lambda: metric(service, "swaps_total", outcome="unchanged") == 1, "the wish")
    service.fake.load_failures.append(GraftError(Reason.ADAPTER_UNUSABLE, "bad tensors in it"))
    await service.promote("bot", 2)
    await eventually(lambda: metric(service, "swaps_total", outcome="failed") == 1, "the failure")
    assert metric(service, "swaps_total", outcome="moved") == 1
    for outcome, count in (("moved", 1), ("failed", 1), ("unchanged", None)):
        assert metric(service, "swap_seconds_count", outcome=outcome) == count


async def test_files_with_other_bytes_are_never_loaded(service: RunningInference) -> None:
    await service.publish("bot", "one")
    (service.folder / "bot-one" / "adapter_model.safetensors").write_text("evil")
    with pytest.raises(GraftError) as caught, rpc_errors("the service"):
        await service.ask("bot:1")
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert not service.fake.loaded


async def test_a_damaged_cache_is_fetched_again(service: RunningInference) -> None:
    (version,) = await service.publish("bot", "one")
    expected = (await service.ask("bot:1")).text
    for other in range(4):
        await service.publish(f"other-{other}", "x")
        await service.ask(f"other-{other}")
    cached = service.folder / "data/inference/adapters" / version.digest.removeprefix("sha256:")
    (cached / "adapter_model.safetensors").write_text("rotten")
    assert (await service.ask("bot:1")).text == expected


async def test_series_of_an_unloaded_version_are_gone(tmp_path: Path) -> None:
    async with start_inference(tmp_path, metric_linger_s=0.0) as service:
        await service.publish("bot", "one", "two")
        await service.promote("bot", 1)
        await serves(service, "bot", 1)
        await service.promote("bot", 2)
        await serves(service, "bot", 2)
        await eventually(lambda: len(service.fake.loaded) == 1, "the unload")
        text = generate_latest(service.server.metrics_registry).decode()
    assert 'graft_inference_requests_total{adapter="bot",outcome="ok",version="2"}' in text
    assert 'version="1"' not in text


@pytest.mark.parametrize("seed", range(3))
async def test_random_promotions_under_load_fail_nothing_and_mix_nothing(
    tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    async with start_inference(tmp_path) as service:
        for adapter in ("a", "b", "c"):
            await service.publish(adapter, "one", "two", "three")
        expected = {}
        for adapter in ("a", "b", "c"):
            for number in (1, 2, 3):
                answer = await service.ask(f"{adapter}:{number}", max_tokens=30)
                expected[answer.provenance.version] = answer.text
            await service.promote(adapter, 1)
        answered = 0

        async def client() -> None:
            nonlocal answered
            while answered < 150:
                request = question(draw.choice("abc"), max_tokens=30)
                parts = [part async for part in service.stub.StreamGenerate(request)]
                names = {part.provenance.version for part in (parts[0], parts[-1])}
                assert len(names) == 1
                assert "".join(part.text for part in parts) == expected[names.pop()]
                answered += 1

        async def promoter() -> None:
            while answered < 150:
                await service.promote(draw.choice("abc"), draw.choice((1, 2, 3)))
                await asyncio.sleep(draw.random() * 0.01)

        await asyncio.gather(promoter(), *(client() for _ in range(8)))
        await eventually(lambda: service.engine.unfinished() == 0, "the end")
