"""PiSSA's arithmetic: what its adapter began with, and the plain LoRA that does the same to the unchanged base."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from services.trainer.run.peft_models import config_json, write_adapter

BEGINNING = "pissa_beginning.safetensors"
Tensors = dict[str, torch.Tensor]


def beginning(model: Any) -> Tensors:
    """A copy of the adapter's tensors, before anything is trained."""
    # Whoever adds a reference adapter with this configuration must not decompose the weights again.
    model.peft_config["default"].init_lora_weights = True
    return {
        name: tensor.detach().clone() for name, tensor in _state(model).items() if ".lora_" in name
    }


def save_as_lora(model: Any, begun: Tensors, folder: Path) -> None:
    """Writes the LoRA of twice the rank: B A - B0 A0 = [B, -B0] [A; A0].

    Raises:
        GraftError: INVALID_SPEC, when a trained number is not finite.
    """
    weights = _state(model)  # A reward model's head among them, which stays as it is.
    for name, first in begun.items():
        sign, dim = (1, 0) if ".lora_A." in name else (-1, 1)
        weights[name] = torch.cat([weights[name], sign * first.to(weights[name])], dim=dim)
    config = json.loads(config_json(model.peft_config["default"]))
    # The scale alpha / rank stays what it was.
    config |= {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"]}
    write_adapter(weights, json.dumps(config, indent=2, sort_keys=True) + "\n", folder)


def load_beginning(model: Any, begun: Tensors, folder: Path) -> Tensors:
    """What the checkpoint's adapter began with; the base is made to fit it."""
    stored = load_file(folder / BEGINNING)
    for prefix, layer in _layers(model):
        a, b = f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"
        if torch.equal(stored[a], begun[a].cpu()) and torch.equal(stored[b], begun[b].cpu()):
            continue
        weight, scale = layer.get_base_layer().weight, layer.scaling["default"]
        began = begun[b].to(weight) @ begun[a].to(weight)
        change = scale * (began - stored[b].to(weight) @ stored[a].to(weight))
        weight.data += change.t() if layer.fan_in_fan_out else change
    restored: Tensors = stored
    return restored


def _state(model: Any) -> Tensors:
    found: Tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    return found


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module
