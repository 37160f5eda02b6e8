"""Turns an adapter's scales into rows for the layers that vLLM has: merged ones, and one rank's part of them.

Imported in vLLM's workers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from vllm.distributed import get_pp_group, tensor_model_parallel_all_reduce
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.column_parallel_linear import MergedColumnParallelLinearWithLoRA
from vllm.lora.layers.replicated_linear import ReplicatedLinearWithLoRA
from vllm.lora.layers.row_parallel_linear import RowParallelLinearWithLoRA

from services.inference.vllm_plugin.scales import LayerScales, Rows
from services.inference.vllm_plugin.scales_files import DORA, Vector
from services.inference.vllm_plugin.scales_norms import scales_above_one, squares, squares_with

# Where a layer's output is made by what scales_layers.py has taken the place of.
_COVERED = tuple(
    each.apply
    for each in (
        BaseLinearLayerWithLoRA,
        MergedColumnParallelLinearWithLoRA,
        ReplicatedLinearWithLoRA,
    )
)
Parts = list[torch.Tensor | None]


def make_scales(name: str, layer: Any, slots: int) -> LayerScales | None:
    """Buffers for a layer; None where its output cannot be scaled.

    Args:
        name: the layer's path in the model.
        layer: of vLLM.
        slots: how many adapters there may be at once.
    """
    if (
        not isinstance(layer, BaseLinearLayerWithLoRA)
        or type(layer).apply not in _COVERED
        or layer._enable_aux_cuda_stream
    ):
        return None
    return LayerScales(
        slots,
        sum(layer.output_slices),
        layer.input_size if _takes_input(name, layer) else 0,
        biased=layer.base_layer.bias is not None,
        dtype=layer.lora_config.lora_dtype,
        device=layer.device,
    )


def _takes_input(name: str, layer: Any) -> bool:
    """Whether it is the last layer of an MLP, whatever it is called: what IA3 is at the input of."""
    parent = name.rpartition(".")[0].rpartition(".")[2]
    return isinstance(layer, RowParallelLinearWithLoRA) and "att" not in parent


def place(manager: Any, lora: Any, kind: str, vectors: Mapping[str, Vector]) -> dict[str, Rows]:
    """Rows for each layer that an adapter scales.

    Args:
        manager: vLLM's LoRAModelManager.
        lora: its LoRAModel, whose pairs are merged as the layers are.
        vectors: by the name of the module, as the model has it.

    Raises:
        ValueError: naming the tensor.
    """
    left = dict(vectors)
    rows: dict[str, Rows] = {}
    for name, layer in manager.modules.items():
        parts = manager.packed_modules.get(name, [name])
        own = [left.pop(part, None) for part in parts]
        given = [each for each in own if each is not None]
        if not given:
            continue
        if getattr(layer, "graft_scales", None) is None:
            raise ValueError(
                f"tensor {given[0].tensor}: the outputs of {name} ({type(layer).__name__}) cannot be scaled"
            )
        rows[name] = _rows(name, layer, kind, own, manager._get_lora_layer_weights(lora, name))
    if left and get_pp_group().world_size == 1:
        raise ValueError(f"tensor {min(each.tensor for each in left.values())}: no layer has it")
    return rows


def _rows(name: str, layer: Any, kind: str, own: Sequence[Vector | None], weights: Any) -> Rows:
    (first, *_) = (each for each in own if each is not None)
    if first.at_input:
        above_input = _at_input(name, layer, own) - 1
        _check_finite(name, first, above_input)
        return Rows(input=above_input)
    values = _local(layer, [None if each is None else each.values for each in own], first)
    above: Parts
    if kind == DORA:
        above = scales_above_one(values, _norms_squared(layer, values, weights))
    else:
        above = [None if each is None else each - 1 for each in values]
    output = torch.cat(
        [
            torch.zeros(size) if part is None else part.cpu().float()
            for part, size in zip(above, layer.output_slices, strict=True)
        ]
    )
    _check_finite(name, first, output)
    return Rows(output=output, shift=_shift(layer, kind, output))


def _at_input(name: str, layer: Any, own: Sequence[Vector | None]) -> torch.Tensor:
    (vector,) = (each for each in own if each is not None)
    if layer.graft_scales.input is None or len(own) > 1:
        raise ValueError(
            f"tensor {vector.tensor}: the input of {name} ({type(layer).__name__}) cannot be scaled; "
            "only that of an MLP's last layer can, as of down_proj"
        )
    values = vector.values[None]
    if layer.tp_size > 1:
        values = layer.slice_lora_a(values)
    if values.shape[1] != layer.input_size:
        raise _misshapen(vector, layer.input_size)
    return values[0]


def _local(layer: Any, values: Parts, first: Vector) -> Parts:
    """This rank's part of each slice: magnitudes are cut as the rows of B are."""
    columns = [None if each is None else each[:, None] for each in values]
    cut = _cut(layer, columns, layer.slice_lora_b)
    found = [None if each is None else each[:, 0] for each in cut]
    for each, size in zip(found, layer.output_slices, strict=True):
        if each is not None and each.shape[0] != size:
            raise _misshapen(first, size)
    return found


def _cut(layer: Any, parts: Parts, cut: Callable[[Any], Any]) -> Parts:
    """Per slice of the layer, by the layer's own rule."""
    if len(parts) == 1 and layer.n_slices > 1 and parts[0] is not None:
        # One tensor for all slices.
        sizes = layer.base_layer.output_sizes
        whole = parts[0]
        parts = (
            list(torch.split(whole, sizes))
            if whole.shape[0] == sum(sizes)
            else [whole] * len(sizes)
        )
    if layer.tp_size > 1:
        parts = cut(parts) if layer.n_slices > 1 else [cut(parts[0])]
    if len(parts) != layer.n_slices:
        raise ValueError(f"{type(layer).__name__} has slices that no tensor of scales is for")
    return parts


def _norms_squared(layer: Any, values: Parts, weights: Any) -> Parts:
    """||W + BA||^2 of each slice's rows, over all ranks where each has some of the columns."""
    a = weights.lora_a if isinstance(weights.lora_a, list) else [weights.lora_a]
    b = weights.lora_b if isinstance(weights.lora_b, list) else [weights.lora_b]
    if isinstance(layer, RowParallelLinearWithLoRA) and layer.tp_size > 1:
        a = [layer.slice_lora_a(each) for each in a]
    b = _cut(layer, b, layer.slice_lora_b)
    a = a * len(b) if len(a) == 1 else a
    base, start = _base_squares(layer), 0
    found: Parts = []
    for value, its_a, its_b, size in zip(values, a, b, layer.output_slices, strict=True):
        rows = slice(start, start + size)
        start += size
        if value is None:
            found.append(None)
            continue
        if its_a is None or its_b is None:
            raise ValueError("a magnitude without its pair of LoRA")
        its_a, its_b = its_a.to(layer.device), its_b.to(layer.device)
        products = _product(layer, its_a)[:, rows]
        squared = squares_with(base[rows], products, its_a, its_b)
        if isinstance(layer, RowParallelLinearWithLoRA) and layer.tp_size > 1:
            squared = tensor_model_parallel_all_reduce(squared)
        found.append(squared.cpu())
    return found


def _base_squares(layer: Any) -> torch.Tensor:
    """Kept with the layer: the base never changes."""
    if not hasattr(layer, "graft_base_squares"):
        with torch.no_grad():
            layer.graft_base_squares = squares(
                lambda x: _product(layer, x),
                layer.input_size,
                layer.base_layer.params_dtype,
                layer.device,
            )
    kept: torch.Tensor = layer.graft_base_squares
    return kept


def _product(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """What the base layer alone makes of it, without its bias."""
    base = layer.base_layer
    made: torch.Tensor = layer._get_quant_method().apply(base, x.to(base.params_dtype), None)
    return made


def _shift(layer: Any, kind: str, above: torch.Tensor) -> torch.Tensor | None:
    """PEFT's DoRA does not scale the base's bias, and its IA3 does; vLLM may add it before or after."""
    base = layer.base_layer
    if base.bias is None:
        return None
    elsewhere = isinstance(layer, RowParallelLinearWithLoRA) and layer.tp_rank > 0
    if elsewhere or base.skip_bias_add == (kind == DORA):
        return torch.zeros_like(above)
    change: torch.Tensor = above * base.bias.detach().cpu().float()
    return -change if kind == DORA else change


def _check_finite(name: str, vector: Vector, above: torch.Tensor) -> None:
    if not torch.isfinite(above).all():
        raise ValueError(
            f"tensor {vector.tensor}: it has NaN or infinite numbers, or {name} has a row of zeros, "
            "which has no direction"
        )


def _misshapen(vector: Vector, size: int) -> ValueError:
    return ValueError(
        f"tensor {vector.tensor}: it has {vector.values.shape[0]} numbers, and the layer asks for {size}"
    )
