"""Adapters of linear layers for the transformers engine: LoRA, DoRA, AdaLoRA and IA3, from tensors to effects."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from services.inference.engines.transformers_effects import Effect, LowRank, Scale
from services.inference.engines.transformers_tensors import (
    PREFIX,
    UnfitError,
    check_finite,
    take,
)


def low_rank(
    model: Any, config: Mapping[str, Any], tensors: dict[str, Tensor]
) -> dict[str, Effect]:
    """LoRA, DoRA and AdaLoRA as PEFT saves them; their tensors are taken.

    Raises:
        UnfitError: naming the tensor or the field.
    """
    for setting in ("modules_to_save", "lora_bias", "alora_invocation_tokens"):
        if config.get(setting):
            raise UnfitError(f"adapter_config.json has {setting}")
    effects: dict[str, Effect] = {}
    for name in [name for name in tensors if re.search(r"\.lora_A(\.weight)?$", name)]:
        path, _, end = name.removeprefix(PREFIX).partition(".lora_A")
        weight, bias = _linear(model, path, name)
        down = tensors.pop(name)
        if down.dim() != 2 or down.shape[1] != weight.shape[1]:
            raise UnfitError(
                f"tensor {name}: its shape is {list(down.shape)}, and {path} takes {weight.shape[1]}"
            )
        rank = down.shape[0]
        up = take(tensors, f"{PREFIX}{path}.lora_B{end}", (weight.shape[0], rank))
        if config["peft_type"] == "ADALORA":
            down = down * take(tensors, f"{PREFIX}{path}.lora_E", (rank, 1))
            # PEFT divides by the rank that the training began with, and a little.
            scale = float(config["lora_alpha"]) / (float(config["init_r"]) + 1e-5)
            effects[path] = LowRank(down, up, scale if rank else 0.0)
            continue
        scale = _lora_scale(config, path, rank)
        effect = effects[path] = LowRank(down, up, scale)
        if config.get("use_dora"):
            effect.bias = bias
            effect.growth = _growth(weight, effect, _magnitude(tensors, path, weight))
    return effects


def _growth(weight: Tensor, effect: LowRank, magnitude: Tensor) -> Tensor:
    """Magnitudes over the norms of the merged weight's rows: Liu et al. 2024, equation 5."""
    merged = weight.to(effect.up.dtype) + effect.scale * (effect.up @ effect.down)
    growth: Tensor = magnitude / torch.linalg.norm(merged, dim=1)
    check_finite("lora_magnitude_vector", growth)
    return growth


def _linear(model: Any, path: str, tensor: str) -> tuple[Tensor, Tensor | None]:
    """The matrix of a module as (outputs, inputs), and its bias."""
    try:
        module = model.get_submodule(path)
        weight = module.weight
    except AttributeError:
        raise UnfitError(f"tensor {tensor}: the base has no linear layer {path}") from None
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise UnfitError(f"tensor {tensor}: {path} is no linear layer")
    # GPT-2 keeps its matrices the other way round.
    transposed = type(module).__name__ == "Conv1D"
    return (weight.T if transposed else weight), getattr(module, "bias", None)


def scales(model: Any, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Effect]:
    """IA3; its tensors are taken.

    Raises:
        UnfitError: naming the tensor.
    """
    inner = config.get("feedforward_modules") or ()
    effects: dict[str, Effect] = {}
    for name in [name for name in tensors if name.endswith(".ia3_l")]:
        path = name.removeprefix(PREFIX).removesuffix(".ia3_l")
        weight, _ = _linear(model, path, name)
        inside = any(path == one or path.endswith(f".{one}") for one in inner)
        size = weight.shape[1] if inside else weight.shape[0]
        factors = take(tensors, name, (1, size) if inside else (size, 1))
        effects[path] = Scale(factors.flatten(), inside)
    return effects


def _magnitude(tensors: dict[str, Tensor], path: str, weight: Tensor) -> Tensor:
    stem = f"{PREFIX}{path}.lora_magnitude_vector"
    name = stem if stem in tensors else f"{stem}.weight"
    return take(tensors, name, (weight.shape[0],))


def _lora_scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    alpha = float(config["lora_alpha"])
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
