"""Every slot filled and everything in one batch, on the real engine: nobody gets another's adapter.

Once with a slot for each, once with slots that small ones share; that one is compiled too, in the long form.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import warnings
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from safetensors.torch import load_file, save_file

from services.inference.engines.base import EngineAdapter, Sampling
from tests.support.engines import SharedEngine
from tests.support.models import LINEAR, make_adapter
from tests.support.peft import peft_greedy
from tests.support.scaled_folders import make_dora, make_ia3

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


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="session",
    params=["as written", pytest.param("compiled", marks=pytest.mark.soak)],
)
async def shared_slots(
    request: pytest.FixtureRequest, vllm_engine: SharedEngine
) -> AsyncIterator[SharedEngine]:
    """As vllm_engine otherwise, but for twice as many adapters in its two slots, if they are small."""
    options = replace(vllm_engine.options, max_cpu_adapters=8, lora_page_rank=8, max_lora_rank=32)
    engine = SharedEngine(replace(options, enforce_eager=request.param != "compiled"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        await engine.start()
    try:
        yield engine
    finally:
        await engine.really_stop()
        # Sockets close in callbacks of the loop.
        await asyncio.sleep(0)


@pytest_asyncio.fixture(loop_scope="session", params=["a slot each", "shared slots"])
async def empty(
    request: pytest.FixtureRequest, vllm_engine: SharedEngine, shared_slots: SharedEngine
) -> AsyncIterator[SharedEngine]:
    """Its two slots have nothing in them, before and after."""
    engine = shared_slots if request.param == "shared slots" else vllm_engine
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
    assert empty.limits.max_adapters == (empty.limits.pages or 2)
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


async def test_adapters_of_mixed_ranks_that_share_slots_answer_as_each_does_alone(
    shared_slots: SharedEngine, tiny_base: Path, tmp_path: Path
) -> None:
    """More in one batch than there are slots, and again when others have taken their pages."""
    await shared_slots.stop()
    assert (shared_slots.limits.pages, shared_slots.limits.page_rank) == (8, 8)
    ids, loaded = PROMPTS[1], []
    for number, rank in enumerate((8, 8, 16, 3, 24, 8, 32, 8)):
        targets = ALL if number % 2 else ("q_proj", "down_proj")
        folder = make_adapter(
            tmp_path / str(number), tiny_base, rank=rank, seed=number, scale=0.1, targets=targets
        )
        loaded.append(await load(shared_slots, folder))
    base = peft_greedy(tiny_base, None, ids, COUNT)
    wanted = [peft_greedy(tiny_base, each.folder, ids, COUNT) for each in loaded]
    assert len({tuple(tokens) for tokens in (base, *wanted)}) == 9
    # All that fit; a large one, which pushes the others out; all at once, which the engine has to split.
    for asked in ((0, 1, 2, 3, 5, 7), (6, 4), (4, 0, 1), tuple(range(8))):
        together = await asyncio.gather(
            ask(shared_slots, ids, None), *(ask(shared_slots, ids, loaded[each]) for each in asked)
        )
        assert together == [base, *(wanted[each] for each in asked)]
    # What is unloaded leaves its pages to others.
    for each in loaded[:4]:
        await shared_slots.unload(each)
    again = await load(shared_slots, loaded[2].folder)
    together = await asyncio.gather(
        *(ask(shared_slots, ids, each) for each in (again, *loaded[4:]))
    )
    assert together == [wanted[2], *wanted[4:]]
    await shared_slots.stop()


async def test_doras_and_ia3s_that_share_slots_with_loras_answer_as_each_does_alone(
    shared_slots: SharedEngine, tiny_base: Path, tmp_path: Path
) -> None:
    """Their scales are kept by slot, their low-rank part by page; and whoever gets their pages gets neither."""
    await shared_slots.stop()
    ids = PROMPTS[1]
    folders = [
        make_dora(tmp_path / "dora", tiny_base, seed=1, rank=8, scale=0.1),
        make_dora(tmp_path / "wide dora", tiny_base, seed=2, rank=16, scale=0.1),
        make_ia3(tmp_path / "ia3", tiny_base, seed=3, spread=0.6),
        make_adapter(tmp_path / "lora", tiny_base, seed=4, rank=8, scale=0.1, targets=ALL),
        make_adapter(tmp_path / "wide", tiny_base, seed=5, rank=24, scale=0.1, targets=ALL),
    ]
    base = peft_greedy(tiny_base, None, ids, COUNT)
    wanted = [peft_greedy(tiny_base, folder, ids, COUNT) for folder in folders]
    assert len({tuple(tokens) for tokens in (base, *wanted)}) == 6
    loaded = [await load(shared_slots, folder) for folder in folders]
    together = await asyncio.gather(*(ask(shared_slots, ids, each) for each in (None, *loaded)))
    assert together == [base, *wanted]
    heirs = []
    for number in range(3):
        await shared_slots.unload(loaded[number])
        folder = make_adapter(tmp_path / f"heir {number}", tiny_base, seed=6 + number, scale=0.1)
        heirs.append(await load(shared_slots, folder))
    answers = await asyncio.gather(*(ask(shared_slots, ids, each) for each in (None, *heirs)))
    assert answers == [base, *(peft_greedy(tiny_base, each.folder, ids, COUNT) for each in heirs)]
    await shared_slots.stop()


async def test_an_adapter_that_is_no_number_spoils_no_neighbour_of_its_slot_nor_who_gets_its_page(
    shared_slots: SharedEngine, tiny_base: Path, tmp_path: Path
) -> None:
    """The service refuses such weights; what came into the engine all the same harms its own answers."""
    await shared_slots.stop()
    ids, folders = PROMPTS[2], []
    for number in range(8):
        folder = tmp_path / str(number)
        folders.append(make_adapter(folder, tiny_base, rank=8, seed=number, scale=0.1))
    spoiled = folders[3] / "adapter_model.safetensors"
    tensors = load_file(spoiled)
    save_file({name: tensor * math.nan for name, tensor in tensors.items()}, spoiled)
    base = peft_greedy(tiny_base, None, ids, COUNT)
    wanted = [
        peft_greedy(tiny_base, folder, ids, COUNT) for folder in folders if folder != folders[3]
    ]
    loaded = [await load(shared_slots, folder) for folder in folders]
    bad = loaded.pop(3)
    assert shared_slots.limits.pages == 8
    asked = [ask(shared_slots, ids, each) for each in (None, *loaded)]
    together = await asyncio.gather(*asked, ask(shared_slots, ids, bad))
    assert together[:-1] == [base, *wanted]
    assert together[-1] != base
    await shared_slots.unload(bad)
    heir = await load(shared_slots, folders[0])
    asked = [ask(shared_slots, ids, each) for each in (None, *loaded, heir)]
    assert await asyncio.gather(*asked) == [base, *wanted, wanted[0]]
    await shared_slots.stop()
