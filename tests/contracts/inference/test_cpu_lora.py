"""Every slot filled and everything in one batch, on the real engine: nobody gets another's adapter.

Once as its layers are written, once compiled.
"""

from __future__ import annotations

import asyncio
import itertools
import warnings
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from services.inference.engines.base import EngineAdapter, Sampling
from tests.support.engines import SharedEngine
from tests.support.models import LINEAR, make_adapter
from tests.support.peft import peft_greedy

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.engine]
COUNT = 12
GREEDY = Sampling(max_tokens=COUNT, temperature=0.0, ignore_eos=True)
PROMPTS = [
    [3 + (number * 7 + place * 5) % 500 for place in range(6 + 9 * number)] for number in range(4)
]
ALL = [module.split(".")[1] for module in LINEAR]
_numbers = itertools.count(50_000)


async def ask(engine: SharedEngine, ids: list[int], adapter: EngineAdapter | None) -> list[int]:
    tokens: list[int] = []
    request = f"cpu-lora-{next(_numbers)}"
    async for delta in engine.generate(request, ids, GREEDY, adapter, stream=False):
        tokens += delta.token_ids
    return tokens


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def compiled(vllm_engine: SharedEngine) -> AsyncIterator[SharedEngine]:
    """As vllm_engine otherwise."""
    engine = SharedEngine(replace(vllm_engine.options, enforce_eager=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        await engine.start()
    try:
        yield engine
    finally:
        await engine.really_stop()
        # Sockets close in callbacks of the loop.
        await asyncio.sleep(0)


@pytest_asyncio.fixture(loop_scope="session", params=["as written", "compiled"])
async def empty(
    request: pytest.FixtureRequest, vllm_engine: SharedEngine, compiled: SharedEngine
) -> AsyncIterator[SharedEngine]:
    """Its two slots have nothing in them, before and after."""
    engine = compiled if request.param == "compiled" else vllm_engine
    await engine.stop()
    yield engine
    await engine.stop()


async def load(engine: SharedEngine, folder: Path) -> EngineAdapter:
    adapter = EngineAdapter(next(_numbers), f"{folder.name}@{folder}", folder)
    await engine.load(adapter)
    return adapter


async def test_with_every_slot_filled_each_answer_is_what_it_is_alone(
    empty: SharedEngine, tiny_base: Path, tmp_path: Path
) -> None:
    """Of other ranks and other modules, so that no slot or slice may be left out or taken for another."""
    folders = [
        make_adapter(tmp_path / "wide", tiny_base, rank=16, seed=1, scale=0.1, targets=ALL),
        make_adapter(tmp_path / "few", tiny_base, rank=3, seed=2, targets=("k_proj", "up_proj")),
    ]
    bases = {number: peft_greedy(tiny_base, None, ids, COUNT) for number, ids in enumerate(PROMPTS)}
    first, second = [await load(empty, folder) for folder in folders]
    assert empty.limits.max_adapters == 2
    asked = [
        (number, adapter) for number in range(len(PROMPTS)) for adapter in (None, first, second)
    ]
    together = await asyncio.gather(
        *(ask(empty, PROMPTS[number], adapter) for number, adapter in asked)
    )
    for (number, adapter), tokens in zip(asked, together, strict=True):
        if adapter is None:
            assert tokens == bases[number]
        else:
            assert tokens == peft_greedy(tiny_base, adapter.folder, PROMPTS[number], COUNT)
            assert tokens == await ask(empty, PROMPTS[number], adapter)
            assert tokens != bases[number]


async def test_a_slot_that_gets_another_adapter_answers_with_that_one(
    empty: SharedEngine, tiny_base: Path, tmp_path: Path
) -> None:
    other = await load(empty, make_adapter(tmp_path / "other", tiny_base, seed=9))
    ids, answers = PROMPTS[1], []
    for seed, targets in ((1, ("q_proj",)), (2, ("down_proj", "o_proj")), (3, ("v_proj",))):
        folder = make_adapter(
            tmp_path / str(seed), tiny_base, seed=seed, rank=seed, targets=targets
        )
        adapter = await load(empty, folder)
        mixed, _ = await asyncio.gather(ask(empty, ids, adapter), ask(empty, ids, other))
        assert mixed == peft_greedy(tiny_base, folder, ids, COUNT)
        answers.append(mixed)
        await empty.unload(adapter)
    assert answers[0] != answers[1] != answers[2]
