"""Scales in a compiled model on a CPU: in operators, of which the compiler knows but the layer's name.

The output's is in the operator that our LoRA is, cpu_lora_compiled.py: what is added to a layer's output
holds the scale too, (y + BAx) * s = y + (BAx + (y + BAx) * (s - 1)). Here is the input's. Traced instead, its
look-up of rows would keep the compiler from vector instructions in whatever it joins it with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.utils.torch_utils import direct_register_custom_op

from services.inference.vllm_plugin import cpu_lora_compiled
from services.inference.vllm_plugin.scales import LayerScales


def install() -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """Registers the operator, once in a process; returns what makes a layer's input of what it is called with."""
    direct_register_custom_op("graft_scale_input", _scale_input, ["x"], _nothing)
    return _before


def _before(layer: Any, x: torch.Tensor) -> torch.Tensor:
    scales: LayerScales | None = layer.graft_scales
    if scales is None or scales.input is None:
        return x
    if not torch.compiler.is_compiling():
        # Whoever made it may use it again. The compiler sees to that by itself.
        x = x.clone()
    torch.ops.vllm.graft_scale_input(x, layer.graft_name)
    return x


def _scale_input(x: torch.Tensor, name: str) -> None:
    layer: Any = cpu_lora_compiled.layer_named(name)
    scales: LayerScales = layer.__dict__["graft_scales"]
    if scales.input is None or not scales.inputs:
        return
    groups = layer.punica_wrapper.tokens_of(x)
    if scales.inputs.isdisjoint(groups.active):
        return
    flat = x.view(-1, x.shape[-1])
    flat.addcmul_(flat, groups.rows_of(scales.input))


def _nothing(x: torch.Tensor, name: str) -> None:
    """What the compiler calls in its place: x keeps its shape."""
