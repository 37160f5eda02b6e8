"""DoRA's and IA3's scales where there is no GPU and no second rank to try them on: what each rank of several gets,
what a compiled model computes, and that a captured graph would read what is written later."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from services.inference.vllm_plugin.scales import LayerScales, Rows, scale
from services.inference.vllm_plugin.scales_files import DORA, IA3, Vector

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("default")]
INPUTS, RANK = 12, 3
SLICES = (8, 4, 4)


class Layer(torch.nn.Module):
    """What scales_placing.py asks of vLLM's layers, of one rank."""

    n_slices = 1
    device = torch.device("cpu")

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, rank: int, ranks: int
    ) -> None:
        torch.nn.Module.__init__(self)
        self.tp_rank, self.tp_size = rank, ranks
        self.part = weight
        self.input_size = weight.shape[1]
        self.output_slices: tuple[int, ...] = (weight.shape[0],)
        self.base_layer: Any = SimpleNamespace(
            bias=bias, skip_bias_add=False, params_dtype=torch.float32, output_sizes=list(SLICES)
        )
        self.graft_scales = LayerScales(
            2, weight.shape[0], self.input_size, biased=bias is not None,
            dtype=torch.float32, device="cpu",
        )  # fmt: skip

    def _get_quant_method(self) -> Any:
        return SimpleNamespace(apply=lambda base, x, bias: x @ self.part.t())


def merged_layer() -> type[Layer]:
    """Of queries, keys and values: each rank has some rows of each."""

    class Merged(Layer):
        n_slices = len(SLICES)

        def __init__(
            self, whole: torch.Tensor, bias: torch.Tensor | None, rank: int, ranks: int
        ) -> None:
            cut = [self._of(rank, ranks, part) for part in torch.split(whole, list(SLICES))]
            own = None if bias is None else torch.cat(
                [self._of(rank, ranks, part) for part in torch.split(bias, list(SLICES))]
            )  # fmt: skip
            super().__init__(torch.cat(cut), own, rank, ranks)
            self.output_slices = tuple(size // ranks for size in SLICES)

        @staticmethod
        def _of(rank: int, ranks: int, part: torch.Tensor) -> torch.Tensor:
            return part.chunk(ranks)[rank]

        def slice_lora_b(self, parts: list[Any]) -> list[Any]:
            return [
                None if each is None else self._of(self.tp_rank, self.tp_size, each)
                for each in parts
            ]

    return Merged


def row_layer() -> type[Layer]:
    """As down_proj: each rank has some columns."""
    from vllm.lora.layers.row_parallel_linear import RowParallelLinearWithLoRA

    class Row(Layer, RowParallelLinearWithLoRA):  # type: ignore[misc]
        def __init__(
            self, whole: torch.Tensor, bias: torch.Tensor | None, rank: int, ranks: int
        ) -> None:
            super().__init__(whole.chunk(ranks, 1)[rank], bias, rank, ranks)

        def slice_lora_a(self, a: torch.Tensor) -> torch.Tensor:
            return a.chunk(self.tp_size, 1)[self.tp_rank]

        def slice_lora_b(self, b: torch.Tensor) -> torch.Tensor:
            return b

    return Row


def rows_of(layer: Any, kind: str, own: list[Vector | None], weights: Any = None) -> Rows:
    from services.inference.vllm_plugin import scales_placing

    return scales_placing._rows("layer", layer, kind, own, weights)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("ranks", [1, 2])
def test_each_rank_scales_its_rows_of_a_merged_layer_as_dora_says(ranks: int) -> None:
    weight, magnitudes = drawn(sum(SLICES), INPUTS), drawn(sum(SLICES)).abs()
    a = [drawn(RANK, INPUTS) for _ in SLICES]
    b = [drawn(size, RANK) for size in SLICES]
    # Keys have no adapter.
    own = [Vector("m", part) for part in torch.split(magnitudes, list(SLICES))]
    given: list[Vector | None] = [own[0], None, own[2]]
    weights = SimpleNamespace(lora_a=[a[0], None, a[2]], lora_b=[b[0], None, b[2]])
    found = [
        rows_of(merged_layer()(weight, None, rank, ranks), DORA, given, weights).output
        for rank in range(ranks)
    ]
    for number in range(len(SLICES)):
        sizes = [size // ranks for size in SLICES]
        got = torch.cat(
            [torch.split(each, list(sizes))[number] for each in found if each is not None]
        )
        whole = torch.split(weight, list(SLICES))[number] + b[number] @ a[number]
        wanted = torch.split(magnitudes, list(SLICES))[number] / whole.norm(dim=1) - 1
        torch.testing.assert_close(got, torch.zeros_like(got) if number == 1 else wanted)


def test_ranks_that_have_columns_add_up_their_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.inference.vllm_plugin import scales_placing

    weight, magnitudes = drawn(6, INPUTS), drawn(6).abs()
    a, b = drawn(RANK, INPUTS), drawn(6, RANK)
    weights = SimpleNamespace(lora_a=a, lora_b=b)
    layers = [row_layer()(weight, None, rank, 2) for rank in range(2)]
    parts: list[torch.Tensor] = []

    def keep(part: torch.Tensor) -> torch.Tensor:
        parts.append(part)
        return part

    monkeypatch.setattr(scales_placing, "tensor_model_parallel_all_reduce", keep)
    for layer in layers:
        rows_of(layer, DORA, [Vector("m", magnitudes)], weights)
    monkeypatch.setattr(scales_placing, "tensor_model_parallel_all_reduce", lambda part: sum(parts))
    wanted = magnitudes / (weight + b @ a).norm(dim=1) - 1
    for layer in layers:
        found = rows_of(layer, DORA, [Vector("m", magnitudes)], weights)
        torch.testing.assert_close(found.output, wanted)


def test_each_rank_scales_its_part_of_the_input_as_ia3_says() -> None:
    scales = drawn(INPUTS)
    found = [
        rows_of(
            row_layer()(drawn(6, INPUTS), None, rank, 2), IA3, [Vector("l", scales, at_input=True)]
        )
        for rank in range(2)
    ]
    assert all(each.output is None for each in found)
    torch.testing.assert_close(
        torch.cat([each.input for each in found if each.input is not None]), scales - 1
    )


@pytest.mark.parametrize("kind", [DORA, IA3])
@pytest.mark.parametrize("added_later", [False, True])
def test_a_bias_is_scaled_by_ia3_and_left_alone_by_dora_wherever_vllm_adds_it(
    kind: str, added_later: bool
) -> None:
    """As PEFT has it: IA3 scales a layer's output, DoRA its product."""
    weight, bias, vector = drawn(sum(SLICES), INPUTS), drawn(sum(SLICES)), drawn(sum(SLICES)).abs()
    layer: Any = merged_layer()(weight, bias, 0, 1)
    layer.base_layer.skip_bias_add = added_later
    nothing = [torch.zeros(RANK, INPUTS)] * 3, [torch.zeros(size, RANK) for size in SLICES]
    weights = SimpleNamespace(lora_a=nothing[0], lora_b=nothing[1])
    own: list[Vector | None] = [Vector("v", part) for part in torch.split(vector, list(SLICES))]
    layer.graft_scales.write(1, rows_of(layer, kind, own, weights))
    x = drawn(5, INPUTS)
    slots = torch.tensor([1, -1, 1, 1, -1])
    output = x @ weight.t() + (0 if added_later else bias)
    scales = layer.graft_scales
    found = scale(output, scales.output[slots], scales.shift[slots]) + (bias if added_later else 0)
    product = x @ weight.t()
    scaled = (
        product * vector / weight.norm(dim=1) + bias if kind == DORA else (product + bias) * vector
    )
    wanted = torch.where(slots[:, None] < 0, product + bias, scaled)
    torch.testing.assert_close(found, wanted)


def test_only_the_rank_that_adds_a_bias_keeps_it_out_of_the_scale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from services.inference.vllm_plugin import scales_placing

    monkeypatch.setattr(scales_placing, "tensor_model_parallel_all_reduce", lambda part: part)
    weight, bias, vector = drawn(6, INPUTS), drawn(6), Vector("m", drawn(6).abs())
    weights = SimpleNamespace(lora_a=drawn(RANK, INPUTS), lora_b=drawn(6, RANK))
    first, second = (
        rows_of(row_layer()(weight, bias, rank, 2), DORA, [vector], weights) for rank in range(2)
    )
    assert first.output is not None
    assert first.shift is not None
    assert second.shift is not None
    torch.testing.assert_close(first.shift, -first.output * bias)
    assert not second.shift.any()


@pytest.mark.parametrize("size", [5, 7])
def test_another_number_of_scales_than_the_layer_has_is_said_with_the_tensor(size: int) -> None:
    layer = row_layer()(drawn(6, INPUTS), None, 0, 1)
    with pytest.raises(ValueError, match=f"tensor base.v: it has {size} numbers"):
        rows_of(layer, IA3, [Vector("base.v", drawn(size))])


def test_a_row_of_zeros_has_no_direction() -> None:
    layer = row_layer()(torch.zeros(6, INPUTS), None, 0, 1)
    weights = SimpleNamespace(lora_a=torch.zeros(RANK, INPUTS), lora_b=torch.zeros(6, RANK))
    with pytest.raises(ValueError, match=r"tensor base\.m: .* row of zeros"):
        rows_of(layer, DORA, [Vector("base.m", torch.ones(6))], weights)


def test_a_traced_layer_reads_scales_that_are_written_after_it_was_traced() -> None:
    """As a captured CUDA graph must: fixed memory, no branch on data, and any number of tokens."""
    from services.inference.vllm_plugin import scales_layers

    scales = LayerScales(2, 6, 4, biased=True, dtype=torch.float32, device="cpu")
    wrapper = SimpleNamespace(_token_lora_indices=torch.full((32,), -1))
    layer: Any = SimpleNamespace(graft_scales=scales, punica_wrapper=wrapper)
    weight = drawn(6, 4)

    @torch.compile(backend="aot_eager", fullgraph=True, dynamic=True)
    def forward(x: torch.Tensor) -> torch.Tensor:
        return scales_layers._after(layer, scales_layers._before(layer, x) @ weight.t())

    for tokens in (3, 8):
        x = drawn(tokens, 4)
        scales.write(1, None)
        wrapper._token_lora_indices[:tokens] = torch.tensor([1, -1, 0] * 3)[:tokens]
        assert torch.equal(forward(x), x @ weight.t())
        rows = Rows(output=drawn(6), shift=drawn(6), input=drawn(4))
        scales.write(1, rows)
        assert rows.output is not None
        assert rows.shift is not None
        assert rows.input is not None
        scaled = (x * (1 + rows.input)) @ weight.t() * (1 + rows.output) + rows.shift
        slots = wrapper._token_lora_indices[:tokens, None]
        wanted = torch.where(slots == 1, scaled, x @ weight.t())
        torch.testing.assert_close(forward(x), wanted)
