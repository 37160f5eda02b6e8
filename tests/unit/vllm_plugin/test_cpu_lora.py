"""Adapters of several slots in one batch, on a CPU: whatever the shapes, what a plain loop computes."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from services.inference.vllm_plugin import cpu_lora_packed
from services.inference.vllm_plugin.cpu_lora_groups import TokenGroups
from services.inference.vllm_plugin.cpu_lora_math import add_adapters, added, expand, shrink
from services.inference.vllm_plugin.cpu_lora_weights import LayerWeights, SlotChanges

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("kernels")]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@dataclass
class Layer:
    """Tensors as vLLM makes them, and the weights over them."""

    a: tuple[torch.Tensor, ...]
    b: tuple[torch.Tensor, ...]
    changes: SlotChanges
    weights: LayerWeights

    def write(self, slot: int, rank: int, draw: torch.Generator, slices: list[int]) -> None:
        """As vLLM's set_lora."""
        for number, (a, b) in enumerate(zip(self.a, self.b, strict=True)):
            a[slot] = 0
            b[slot] = 0
            if number in slices:
                a[slot, 0, :rank].copy_(torch.randn(rank, a.shape[3], generator=draw))
                b[slot, 0, :, :rank].copy_(torch.randn(b.shape[2], rank, generator=draw))
        self.changes.note(slot)


def layer(slots: int, rank: int, inputs: int, outputs: list[int], dtype: torch.dtype) -> Layer:
    """No slot has weights."""
    a = tuple(torch.zeros(slots, 1, rank, inputs, dtype=dtype) for _ in outputs)
    b = tuple(torch.zeros(slots, 1, size, rank, dtype=dtype) for size in outputs)
    changes = SlotChanges()
    return Layer(a, b, changes, LayerWeights(a, b, changes))


def plain(
    y: torch.Tensor, x: torch.Tensor, its: Layer, of_tokens: list[int], scale: float
) -> torch.Tensor:
    """Token by token, slice by slice, in float64."""
    wanted = y.double()
    stops = [0]
    for b in its.b:
        stops.append(stops[-1] + b.shape[2])
    for token, slot in enumerate(of_tokens):
        for (start, stop), a, b in zip(pairwise(stops), its.a, its.b, strict=True):
            if slot >= 0:
                low = a[slot, 0].double() @ x[token].double()
                wanted[token, start:stop] += scale * (b[slot, 0].double() @ low)
    return wanted


@pytest.mark.parametrize("most_merged", [0, 2**18], ids=["apart", "merged"])
def test_adapters_of_the_first_and_last_slice_leave_the_one_between_as_it_is(
    monkeypatch: pytest.MonkeyPatch, most_merged: int
) -> None:
    """q and v, and not k: what most adapters are of."""
    monkeypatch.setattr(cpu_lora_packed, "_MOST_MERGED", most_merged)
    draw = torch.Generator().manual_seed(0)
    its = layer(4, 8, 64, [64, 32, 32], torch.bfloat16)
    for slot in range(4):
        its.write(slot, 8, draw, [0, 2])
    of_tokens = [0, 3, -1, 1, 2, 0]
    x = torch.randn(6, 64, generator=draw).bfloat16()
    y = torch.randn(6, 128, generator=draw).bfloat16()
    before, wanted = y.clone(), plain(y, x, its, of_tokens, 1.0)
    add_adapters(y, x, its.weights, TokenGroups(of_tokens, 4))
    assert torch.equal(y[:, 64:96], before[:, 64:96])
    assert torch.equal(y[2], before[2])
    assert (y.double() - wanted).abs().max() <= 2e-2 * wanted.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.usefixtures("way")
def test_any_batch_gets_what_a_plain_loop_computes(seed: int, dtype: torch.dtype) -> None:
    pick, draw = random.Random(seed), torch.Generator().manual_seed(seed)
    slots, rank = pick.randint(1, 9), pick.choice([1, 8, 16])
    # Every third is of sizes that vLLM's own products take.
    unit, half = (32, 16) if seed % 3 == 0 else (1, 1)
    outputs = [half * pick.randint(1, 70 // half) for _ in range(pick.randint(1, 3))]
    its = layer(slots, rank, unit * pick.randint(1, 90 // unit), outputs, dtype)
    for slot in range(slots):
        slices = [number for number in range(len(outputs)) if pick.random() < 0.8]
        its.write(slot, pick.randint(1, rank), draw, slices)
    for tokens, scale in ((1, 1.0), (pick.randint(2, 40), 1.0), (7, 0.5)):
        of_tokens = [pick.randint(-1, slots - 1) for _ in range(tokens)]
        x = torch.randn(tokens, its.a[0].shape[3], generator=draw).to(dtype)
        y = torch.randn(tokens, sum(outputs), generator=draw).to(dtype)
        before, wanted = y.clone(), plain(y, x, its, of_tokens, scale)
        add_adapters(y, x, its.weights, TokenGroups(of_tokens, slots), scale)
        difference = (y.double() - wanted).abs().max() / wanted.abs().max()
        assert difference < TOLERANCE[dtype]
        if scale == 1:
            alone = added(x, sum(outputs), its.weights, TokenGroups(of_tokens, slots))
            assert ((before + alone).double() - wanted).abs().max() / wanted.abs().max() < (
                TOLERANCE[dtype]
            )
            assert not alone[[slot < 0 for slot in of_tokens]].any()
        for token, slot in enumerate(of_tokens):
            if slot < 0:
                assert torch.equal(y[token], before[token])


@pytest.mark.parametrize("of_tokens", [[], [-1], [-1, -1, -1]], ids=str)
def test_a_batch_without_adapters_is_left_alone(of_tokens: list[int]) -> None:
    its = layer(2, 8, 16, [16], torch.float32)
    its.write(1, 8, torch.Generator().manual_seed(0), [0])
    y = torch.randn(len(of_tokens), 16)
    before = y.clone()
    add_adapters(y, torch.randn(len(of_tokens), 16), its.weights, TokenGroups(of_tokens, 2))
    assert torch.equal(y, before)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("where", ["A", "B"])
def test_weights_that_are_no_numbers_reach_only_their_own_tokens(value: float, where: str) -> None:
    its = layer(3, 8, 16, [16, 8], torch.float32)
    draw = torch.Generator().manual_seed(0)
    for slot in range(3):
        its.write(slot, 8, draw, [0, 1])
    (its.a if where == "A" else its.b)[1][2, 0, 3, 4] = value
    of_tokens = [0, 2, -1, 1, 2]
    x, y = torch.randn(5, 16, generator=draw), torch.randn(5, 24, generator=draw)
    wanted = plain(y, x, its, of_tokens, 1.0)
    add_adapters(y, x, its.weights, TokenGroups(of_tokens, 3))
    innocent = [0, 2, 3]
    torch.testing.assert_close(y[innocent].double(), wanted[innocent], atol=1e-4, rtol=1e-4)
    assert not torch.isfinite(y[1]).all()


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float16, 6e4), (torch.bfloat16, 3e38)], ids=str
)
def test_numbers_that_overflow_reach_only_their_own_tokens(
    dtype: torch.dtype, value: float
) -> None:
    its = layer(2, 8, 32, [16], dtype)
    draw = torch.Generator().manual_seed(0)
    for slot in range(2):
        its.write(slot, 8, draw, [0])
    its.a[0][1, 0, :8] = value
    its.changes.note(1)
    of_tokens = [0, 1, -1]
    x, y = torch.full((3, 32), 2.0, dtype=dtype), torch.zeros(3, 16, dtype=dtype)
    wanted = plain(y, x, its, of_tokens, 1.0)
    add_adapters(y, x, its.weights, TokenGroups(of_tokens, 2))
    torch.testing.assert_close(y[[0, 2]].double(), wanted[[0, 2]], atol=0.5, rtol=0.05)
    assert not torch.isfinite(y[1]).all()


@pytest.mark.usefixtures("way")
def test_a_slot_that_gets_another_adapter_is_computed_with_that_one() -> None:
    its = layer(2, 16, 16, [16, 8], torch.float32)
    draw = torch.Generator().manual_seed(0)
    of_tokens = [0, 1, -1]
    groups = TokenGroups(of_tokens, 2)
    x = torch.randn(3, 16, generator=draw)
    # Of more slices and of fewer, of larger rank and smaller.
    for slot, rank, slices in ((0, 4, [0]), (1, 8, [0, 1]), (0, 16, [1]), (0, 2, []), (1, 3, [0])):
        its.write(slot, rank, draw, slices)
        y = torch.zeros(3, 24)
        add_adapters(y, x, its.weights, groups)
        torch.testing.assert_close(
            y.double(), plain(torch.zeros(3, 24), x, its, of_tokens, 1.0), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("most_merged", [0, 2**18], ids=["apart", "merged"])
def test_packed_weights_are_changed_where_a_slot_was_written(
    monkeypatch: pytest.MonkeyPatch, most_merged: int
) -> None:
    monkeypatch.setattr(cpu_lora_packed, "_MOST_MERGED", most_merged)
    draw = torch.Generator().manual_seed(0)
    its = layer(5, 8, 64, [64, 32, 96], torch.bfloat16)
    for slot in range(5):
        its.write(slot, 8, draw, [0, 1, 2])
    packed = its.weights.content().packed
    if packed is None:
        pytest.skip("this CPU has no AMX")
    of_tokens = [4, 0, 3, -1, 1, 2, 0]
    x = torch.randn(7, 64, generator=draw).bfloat16()
    for slot, rank, slices in (
        (1, 8, [0, 1, 2]),
        (3, 2, [2]),
        (3, 8, [0]),
        (0, 1, []),
        (4, 7, [1]),
    ):
        with torch.inference_mode():
            its.write(slot, rank, draw, slices)
            y = torch.zeros(7, 192).bfloat16()
            add_adapters(y, x, its.weights, TokenGroups(of_tokens, 5))
        assert its.weights.content().packed is packed
        wanted = plain(torch.zeros(7, 192), x, its, of_tokens, 1.0)
        assert (y.double() - wanted).abs().max() <= 2e-2 * wanted.abs().max()
    # No other slot has a rank as large any more.
    for slot in range(5):
        its.write(slot, 4, draw, [0, 1, 2])
    assert its.weights.content().packed is not packed


def test_a_layer_that_has_missed_many_changes_looks_at_all_slots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    its = layer(3, 8, 16, [16], torch.float32)
    draw = torch.Generator().manual_seed(0)
    its.write(0, 8, draw, [0])
    assert its.weights.content().ranks == (8, 0, 0)
    its.write(1, 4, draw, [0])
    for _ in range(2000):
        its.changes.note(2)
    assert its.weights.content().ranks == (8, 4, 0)


def test_a_layer_that_vllm_first_uses_in_inference_mode_can_be_written_outside_of_it() -> None:
    its = layer(2, 8, 16, [16], torch.float32)
    with torch.inference_mode():
        its.weights = LayerWeights(its.a, its.b, its.changes)
    draw = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        its.write(0, 8, draw, [0])
    its.write(1, 8, draw, [0])
    x, y = torch.randn(2, 16, generator=draw), torch.zeros(2, 16)
    with torch.inference_mode():
        add_adapters(y, x, its.weights, TokenGroups([0, 1], 2))
    torch.testing.assert_close(
        y.double(), plain(torch.zeros(2, 16), x, its, [0, 1], 1.0), atol=1e-4, rtol=1e-4
    )


def test_rows_that_a_layer_has_more_or_fewer_of_than_the_step_have_no_adapter() -> None:
    groups = TokenGroups([1, 0, 1], 2)
    assert [list(groups.first(count).active) for count in (1, 2, 5)] == [[1], [0, 1], [0, 1]]
    assert groups.first(5).tokens == 5


@pytest.mark.parametrize("seed", range(4))
def test_shrinking_and_expanding_apart_is_the_same_in_any_data_type(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    its = layer(3, 8, 20, [12, 6], torch.bfloat16)
    for slot in range(3):
        its.write(slot, 8, draw, [0, 1])
    of_tokens = [2, -1, 0, 2, 1]
    groups = TokenGroups(of_tokens, 3)
    x = torch.randn(5, 20, generator=draw).to(torch.bfloat16)
    y = torch.randn(5, 18, generator=draw)
    wanted = plain(y, x, its, of_tokens, 2.0)
    low = [torch.full((5, 8), 7.0) for _ in its.b]
    shrink(low, x, its.a, groups, 2.0)
    assert not any(each[1].any() for each in low)
    expand(y[:, :12], low[0], its.b[0], groups)
    expand(y[:, 12:], low[1], its.b[1], groups)
    torch.testing.assert_close(y.double(), wanted, atol=1e-3, rtol=1e-3)
    expand(y[:, 12:], low[1], its.b[1], groups, add=False)
    assert not y[1, 12:].any()


def test_a_logit_for_padding_gets_nothing() -> None:
    its = layer(2, 8, 16, [24], torch.float32)
    draw = torch.Generator().manual_seed(0)
    its.write(0, 8, draw, [0])
    its.write(1, 8, draw, [0])
    x, of_tokens = torch.randn(2, 16, generator=draw), [0, 1]
    wanted = plain(torch.zeros(2, 24), x, its, of_tokens, 1.0)
    for columns in (20, 30):
        y = torch.zeros(2, columns)
        add_adapters(y, x, its.weights, TokenGroups(of_tokens, 2))
        shared = min(columns, 24)
        torch.testing.assert_close(y[:, :shared].double(), wanted[:, :shared], atol=1e-4, rtol=1e-4)
        assert not y[:, shared:].any()
