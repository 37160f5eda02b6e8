"""More adapters than the engine computes at once stay in main memory; beyond that the least used make room."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from services.inference.engines.base import Delta
from services.inference.engines.fake import FakeEngine
from tests.support.inference import RunningInference, start_inference
from tests.support.waiting import eventually


def tier(service: RunningInference, name: str) -> float | None:
    return service.server.metrics_registry.get_sample_value(
        "graft_inference_tier_versions", {"tier": name}
    )


async def test_what_does_not_fit_onto_the_slots_stays_loaded(tmp_path: Path) -> None:
    engine = FakeEngine(max_adapters=2, max_cpu_adapters=5)
    async with start_inference(tmp_path, engine=engine) as service:
        for number in range(5):
            await service.publish(f"bot-{number}", str(number))
        for _ in range(2):
            for number in range(5):
                await service.ask(f"bot-{number}")
        assert len(engine.loaded) == 5
        # None of them was loaded twice.
        assert max(engine.loaded) == 5
        assert (tier(service, "gpu"), tier(service, "cpu"), tier(service, "disk")) == (2, 5, 5)
        await service.publish("bot-5", "5")
        await service.ask("bot-5")
        assert len(engine.loaded) == 5
        assert (tier(service, "cpu"), tier(service, "disk")) == (5, 6)


class CountingEngine(FakeEngine):
    """Knows how many different adapters it has computed at once."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._now: Counter[int] = Counter()
        self.most = 0

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Delta, None]:
        number = args[3].number
        self._now[number] += 1
        self.most = max(self.most, len(+self._now))
        try:
            async with aclosing(super().generate(*args, **kwargs)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self._now[number] -= 1


async def test_popular_and_rare_adapters_are_all_answered_by_their_own_on_few_slots(
    tmp_path: Path,
) -> None:
    """As bench/adapters.py, which measures it."""
    count, engine = 24, CountingEngine(max_adapters=3, max_cpu_adapters=24, token_s=0.001)
    async with start_inference(tmp_path, engine=engine, slot_turn_s=0.005) as service:
        names = [f"bot-{number}" for number in range(count)]
        for name in names:
            await service.publish(name, name)
        expected = {name: (await service.ask(name, max_tokens=8)).text for name in names}
        assert len(set(expected.values())) == count
        draw, asked = random.Random(0), Counter(names)
        weights = [1 / (rank + 1) for rank in range(count)]

        async def client() -> None:
            for _ in range(20):
                (name,) = draw.choices(names, weights)
                assert (await service.ask(name, max_tokens=8)).text == expected[name]
                asked[name] += 1

        await asyncio.gather(*(client() for _ in range(32)))
        assert min(asked.values()) > 1
        assert engine.most == 3
        # Each was loaded once, whatever the slots did.
        assert max(engine.loaded) == count


async def test_the_disk_is_bounded_and_what_is_loaded_stays_on_it(tmp_path: Path) -> None:
    engine = FakeEngine(max_adapters=2)
    # One is {"peft_type": "LORA", "r": 8} and a letter.
    size_bytes = 30
    async with start_inference(
        tmp_path, engine=engine, cache_max_bytes=3 * size_bytes + 5, pinned=("bot-0",)
    ) as service:
        for number in range(6):
            await service.publish(f"bot-{number}", str(number))
            await service.ask(f"bot-{number}")
        assert tier(service, "disk") == 3
        root = tmp_path / "data/inference/adapters"
        kept = {
            (folder / "adapter_model.safetensors").read_text()
            for folder in root.iterdir()
            if not folder.name.startswith(".")
        }
        # The first is the least recently used by far, and the engine may read it again.
        assert kept == {"0", "4", "5"}
        fetched = len(service.memory.fetched)
        await service.ask("bot-4")
        assert len(service.memory.fetched) == fetched
        assert (await service.ask("bot-1")).text


async def test_what_an_alias_names_is_on_disk_before_anybody_asks(
    service: RunningInference,
) -> None:
    await service.publish("bot", "one", "two")
    await service.promote("bot", 2, alias="canary")
    await eventually(lambda: len(service.memory.fetched) == 2, "the prefetch of its two files")
    assert not service.fake.loaded
    assert (await service.ask("bot@canary")).text
    assert len(service.memory.fetched) == 2


async def test_production_beyond_the_slots_is_on_disk_after_the_start(tmp_path: Path) -> None:
    async with start_inference(tmp_path / "first") as first:
        for number in range(4):
            await first.publish(f"bot-{number}", str(number))
            await first.promote(f"bot-{number}", 1)
        engine = FakeEngine(max_adapters=1)
        async with start_inference(
            tmp_path / "second", registry=first.registry, engine=engine
        ) as second:
            assert len(engine.loaded) == 1
            kept = tmp_path / "second/data/inference/adapters"
            await eventually(lambda: len(list(kept.glob("[!.]*"))) == 4, "the prefetch")
            assert len(engine.loaded) == 1
            assert (await second.ask("bot-0")).text
