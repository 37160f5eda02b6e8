"""A quicker forward pass for PEFT's LoRA on plain linear layers; same mathematics, same parameters.

PEFT scales and adds tensors as wide as the layer's output. Here the scale goes to the rank-wide tensor
and the sum into the matrix product, which on a CPU saves a tenth of a step and more.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.nn.functional import linear


def fuse_lora(model: Any) -> int:
    """Gives every suited LoRA layer the quicker forward pass; returns how many there are."""
    count = 0
    for module in model.modules():
        if isinstance(module, LoraLinear) and _is_plain(module):
            module.forward = types.MethodType(_forward, module)
            count += 1
    return count


def _is_plain(layer: Any) -> bool:
    base = layer.base_layer
    return (
        type(base) is torch.nn.Linear
        and layer.active_adapters == ["default"]
        and not layer.lora_variant
        and not layer.lora_bias["default"]
        and layer.lora_A["default"].weight.dtype == base.weight.dtype
    )


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    if layer.disable_adapters or layer.merged or layer.active_adapters != ["default"]:
        # Somebody wants the base's answer, or another adapter's: a reference model.
        theirs: torch.Tensor = type(layer).forward(layer, x)
        return theirs
    rows = x.reshape(-1, x.shape[-1])
    wide: torch.Tensor = layer.base_layer(rows)
    narrow = linear(layer.lora_dropout["default"](rows), layer.lora_A["default"].weight)
    narrow = narrow * layer.scaling["default"]
    up = layer.lora_B["default"].weight.t()
    # In place: the base's product is nobody else's, and its backward pass does not need it. Autocast leaves out
    # what works in place, so there the types are made alike here.
    wide = wide.addmm_(narrow.to(wide.dtype), up.to(wide.dtype))
    return wide.reshape(*x.shape[:-1], wide.shape[-1])
