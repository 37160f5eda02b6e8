"""Has vLLM's linear layers with LoRA apply scales: before the base's product, and where LoRA ends.

One way for a GPU, always computed, since a captured CUDA graph cannot leave it out. Two for our own LoRA
on a CPU (cpu_lora.py), with and without compilation, where a step without DoRA and IA3 is not to pay.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

from services.inference.vllm_plugin.scales import LayerScales, scale


class Way(Enum):
    """How scales are computed in this process."""

    ALWAYS = "always"
    GROUPED = "grouped"
    COMPILED = "compiled"


def install(way: Way) -> None:
    """Once in a process, after cpu_lora_entry.install() where that is wanted."""
    if way is Way.COMPILED:
        from services.inference.vllm_plugin import scales_compiled

        # The output's is in the operator that adds LoRA (cpu_lora_compiled.py).
        before = scales_compiled.install()
    else:
        before = _before if way is Way.ALWAYS else _before_grouped
    stock_sync = BaseLinearLayerWithLoRA._apply_sync
    stock_forward = BaseLinearLayerWithLoRA._apply_base_forward

    def sync(layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        made: torch.Tensor = stock_sync(layer, before(layer, x), bias)
        return made

    def forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = stock_forward(layer, before(layer, x))
        return made

    BaseLinearLayerWithLoRA._apply_sync = sync
    BaseLinearLayerWithLoRA._apply_base_forward = forward
    if way is not Way.COMPILED:
        _install_end(_after if way is Way.ALWAYS else _after_grouped)


def _install_end(after: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    stock = BaseLinearLayerWithLoRA._apply_lora_to_output

    def end(layer: Any, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return after(layer, stock(layer, x, output))

    BaseLinearLayerWithLoRA._apply_lora_to_output = end


def _before(layer: Any, x: torch.Tensor) -> torch.Tensor:
    scales: LayerScales | None = layer.graft_scales
    if scales is None or scales.input is None:
        return x
    return scale(x, scales.input[_slots(layer, x)], None)


def _after(layer: Any, output: torch.Tensor) -> torch.Tensor:
    scales: LayerScales | None = layer.graft_scales
    if scales is None:
        return output
    slots = _slots(layer, output)
    shift = None if scales.shift is None else scales.shift[slots]
    return scale(output, scales.output[slots], shift)


def _slots(layer: Any, rows: torch.Tensor) -> torch.Tensor:
    """Of each token, -1 where it has no adapter: the last row. Fixed memory that vLLM fills before each step."""
    slots: torch.Tensor = layer.punica_wrapper._token_lora_indices
    return slots[: rows.shape[:-1].numel()]


def _before_grouped(layer: Any, x: torch.Tensor) -> torch.Tensor:
    scales: LayerScales | None = layer.graft_scales
    if scales is None or scales.input is None or not scales.inputs:
        return x
    groups = layer.punica_wrapper.tokens_of(x)
    if scales.inputs.isdisjoint(groups.active):
        return x
    return scale(x, groups.rows_of(scales.input), None)


def _after_grouped(layer: Any, output: torch.Tensor) -> torch.Tensor:
    scales: LayerScales | None = layer.graft_scales
    if scales is None or not scales.outputs:
        return output
    groups = layer.punica_wrapper.tokens_of(output)
    if scales.outputs.isdisjoint(groups.active):
        return output
    shift = None if scales.shift is None else groups.rows_of(scales.shift)
    return scale(output, groups.rows_of(scales.output), shift)
