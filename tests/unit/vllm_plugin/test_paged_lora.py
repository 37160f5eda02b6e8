"""Adapters in pages of shared slots, on a CPU: what a plain loop computes, and nobody's neighbour harms it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch

from services.inference.vllm_plugin.cpu_lora_groups import TokenGroups
from services.inference.vllm_plugin.cpu_lora_math import add_adapters, add_in_float32, added
from services.inference.vllm_plugin.cpu_lora_paged_weights import PagedMemory, PagedWeights
from services.inference.vllm_plugin.lora_pages import PageTable, Paging

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("kernels")]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
PAGING = Paging(slots=3, slot_rank=64, page_rank=8)
Adapter = list[tuple[torch.Tensor, torch.Tensor] | None]


class Engine:
    """One layer with pages, and what is in them beside it."""

    def __init__(self, inputs: int, outputs: Sequence[int], dtype: torch.dtype) -> None:
        self.inputs, self.outputs, self.dtype = inputs, outputs, dtype
        self.memory = PagedMemory(PageTable(PAGING))
        a = tuple(torch.zeros(3, 1, 64, inputs, dtype=dtype) for _ in outputs)
        b = tuple(torch.zeros(3, 1, size, 64, dtype=dtype) for size in outputs)
        self.weights = PagedWeights(a, b, self.memory)
        self.here: dict[int, Adapter] = {}

    def load(
        self, slot: int, rank: int, draw: torch.Generator, slices: Sequence[int] | None = None
    ) -> Adapter:
        """Another adapter for a slot, random; without slices it has nothing for this layer."""
        slices = range(len(self.outputs)) if slices is None else slices
        self.unload(slot)
        adapter: Adapter = [None] * len(self.outputs)
        for number in slices:
            adapter[number] = (
                torch.randn(rank, self.inputs, generator=draw).to(self.dtype),
                torch.randn(self.outputs[number], rank, generator=draw).to(self.dtype),
            )
        self.put(slot, rank, adapter)
        return adapter

    def put(self, slot: int, rank: int, adapter: Adapter, *, odd: bool = False) -> None:
        """As the worker does it."""
        self.memory.take(slot, rank, odd=odd)
        self.here[slot] = adapter
        slices = [number for number, each in enumerate(adapter) if each is not None]
        if not slices:
            self.weights.clear(slot)
            return
        start = 0
        for rows in self.memory.table.rows(slot):
            stop = start + rows.stop - rows.start
            for its_a, its_b, each in zip(*self.weights.views(rows), adapter, strict=True):
                its_a[0], its_b[0] = 0, 0
                if each is not None:
                    count = max(0, min(stop, rank) - start)
                    its_a[0, 0, :count] = each[0][start:stop]
                    its_b[0, 0, :, :count] = each[1][:, start:stop]
            start = stop
        self.weights.wrote(slot, slices)

    def unload(self, slot: int) -> None:
        self.memory.release(slot)
        self.here.pop(slot, None)

    def plain(self, y: torch.Tensor, x: torch.Tensor, of_tokens: Sequence[int]) -> torch.Tensor:
        """Token by token, slice by slice, in float64."""
        wanted, edges = y.double(), [0]
        for size in self.outputs:
            edges.append(edges[-1] + size)
        for token, slot in enumerate(of_tokens):
            for (start, stop), each in zip(pairwise(edges), self.here.get(slot, ()), strict=False):
                if each is not None:
                    low = each[0].double() @ x[token].double()
                    wanted[token, start:stop] += each[1].double() @ low
        return wanted

    def check(self, of_tokens: Sequence[int], draw: torch.Generator) -> None:
        """All ways to add give what the plain loop does."""
        groups = TokenGroups(of_tokens, PAGING.pages)
        x = torch.randn(len(of_tokens), self.inputs, generator=draw).to(self.dtype)
        y = torch.randn(len(of_tokens), sum(self.outputs), generator=draw).to(self.dtype)
        before, wanted = y.clone(), self.plain(y, x, of_tokens)
        add_adapters(y, x, self.weights, groups)
        alone = added(x, sum(self.outputs), self.weights, groups)
        exact = before.clone()
        add_in_float32(exact, x, self.weights, groups)
        for found in (y, before + alone, exact):
            far = (found.double() - wanted).abs().max() / wanted.abs().max()
            assert far < TOLERANCE[self.dtype]
        nobody = [token for token, slot in enumerate(of_tokens) if slot not in self.here]
        assert torch.equal(y[nobody], before[nobody])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("way")
def test_whatever_comes_and_goes_each_batch_gets_what_a_plain_loop_computes(
    seed: int, dtype: torch.dtype
) -> None:
    pick, draw = random.Random(seed), torch.Generator().manual_seed(seed)
    # Every second is of sizes that vLLM's own products take, and change in place.
    unit, half = (32, 32) if seed % 2 == 0 else (1, 1)
    outputs = [half * pick.randint(1, 96 // half) for _ in range(pick.randint(1, 3))]
    engine = Engine(unit * pick.randint(1, 90 // unit), outputs, dtype)
    for _ in range(25):
        slot, rank = pick.randrange(PAGING.pages), pick.choice([1, 4, 8, 8, 8, 13, 16, 64])
        engine.unload(slot)
        while engine.memory.table.free < PAGING.needed(rank):
            engine.unload(pick.choice(list(engine.here)))
        slices = [number for number in range(len(outputs)) if pick.random() < 0.8]
        engine.load(slot, rank, draw, slices)
        mixture = [-1, *engine.here]
        engine.check([pick.choice(mixture) for _ in range(pick.randint(1, 20))], draw)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("where", [0, 1], ids=["A", "B"])
def test_what_is_no_number_reaches_no_neighbour_in_the_slot_neither_loaded_nor_evicted(
    value: float, where: int
) -> None:
    draw = torch.Generator().manual_seed(0)
    engine = Engine(32, [32, 64], torch.float32)
    for slot in range(7):
        engine.load(slot, 8, draw)
    spoiled = engine.load(3, 8, draw)
    engine.unload(3)
    assert spoiled[1] is not None
    spoiled[1][where][2, 3] = value
    engine.put(3, 8, spoiled, odd=True)
    of_tokens = [0, 3, -1, 2, 4, 6]
    x, y = torch.randn(6, 32, generator=draw), torch.randn(6, 96, generator=draw)
    wanted = engine.plain(y, x, of_tokens)
    add_adapters(y, x, engine.weights, TokenGroups(of_tokens, PAGING.pages))
    innocent = [0, 2, 3, 4, 5]
    torch.testing.assert_close(y[innocent].double(), wanted[innocent], atol=1e-4, rtol=1e-4)
    assert not torch.isfinite(y[1]).all()
    engine.unload(3)
    assert engine.weights.content().tame
    engine.check([0, 2, -1, 4, 6, 5, 1], draw)
    # And one that takes the page and has less to put there.
    engine.load(9, 2, draw, [0])
    assert engine.memory.table.pages(9) == (3,)
    engine.check([9, 0, 2, 9, 4], draw)


@pytest.mark.usefixtures("way")
def test_one_that_has_nothing_for_a_layer_gets_nothing_of_who_had_its_page() -> None:
    draw = torch.Generator().manual_seed(0)
    engine = Engine(32, [32], torch.float32)
    engine.load(0, 8, draw)
    engine.load(1, 8, draw)
    engine.check([0, 1], draw)
    engine.load(0, 8, draw, [])
    y = torch.zeros(2, 32)
    add_adapters(y, torch.ones(2, 32), engine.weights, TokenGroups([0, 1], PAGING.pages))
    assert not y[0].any()
    assert y[1].any()


def test_packed_weights_are_changed_where_a_page_was_written() -> None:
    draw = torch.Generator().manual_seed(0)
    engine = Engine(64, [64, 32], torch.bfloat16)
    for slot in range(6):
        engine.load(slot, 16, draw)
    packed = engine.weights.content().packed
    if packed is None:
        pytest.skip("this CPU has no AMX")
    engine.load(2, 12, draw)
    engine.load(4, 16, draw, [1])
    engine.check([2, 4, 0, -1, 5], draw)
    assert engine.weights.content().packed is packed


def test_few_adapters_that_stay_are_laid_out_alone_until_another_has_one_of_their_slots() -> None:
    draw = torch.Generator().manual_seed(0)
    engine = Engine(64, [64, 32], torch.bfloat16)
    for slot in range(20):
        engine.load(slot, 8, draw)
    if engine.weights.content().packed is None:
        pytest.skip("this CPU has no AMX")

    def narrow() -> bool:
        groups = TokenGroups([3, -1, 5, 3], PAGING.pages)
        found = engine.weights.content_of(groups).packed
        return found is not None and found.columns == 32

    for _ in range(12):
        engine.check([3, -1, 5, 3], draw)
    assert narrow()
    # Another adapter elsewhere changes nothing of it; another in its place does, and at once.
    engine.load(11, 8, draw)
    assert narrow()
    engine.check([3, -1, 5, 3], draw)
    engine.load(5, 8, draw)
    engine.check([3, -1, 5, 3], draw)
    for _ in range(12):
        engine.check([5, -1, 3, 5], draw)
    engine.check([11, 5, 19, 0], draw)
