"""A plain LoRA of an adapter of another kind: exactly where the method is one in disguise, else by singular values.

Whatever merges into linear layers can be approximated: what the merge changes of each weight is cut to a rank. How
much that loses is measured afterwards, on logits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from graft.errors import GraftError, Reason
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file

from services.combining.tensors import cut, filled
from services.trainer.run import adalora
from services.trainer.run.model_jobs.assembling import plain_base, with_adapter
from services.trainer.run.model_jobs.pulled import Pulled
from services.trainer.run.peft_models import CONFIG, WEIGHTS, write_adapter

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Converted:
    """What was done.

    Attributes:
        exact: whether nothing but rounding is lost.
        how: in words.
        weights_error: Frobenius norm of what is lost, over that of the update, of all layers together.
        worst: the module that loses most, and its share; "" when exact.
    """

    exact: bool
    how: str
    weights_error: float = 0.0
    worst: str = ""


def convert(pulled: Pulled, rank: int, folder: Path) -> Converted:
    """Writes the plain LoRA of a version to a folder.

    Raises:
        GraftError: INVALID_SPEC, for what cannot be one.
    """
    config = json.loads((pulled.folder / CONFIG).read_text("utf-8"))
    if config.get("modules_to_save") or config.get("bias", "none") != "none":
        raise _refused(pulled, "it holds more than updates of weights: whole modules or biases")
    kind, begins = str(config.get("peft_type")), config.get("init_lora_weights")
    if kind == "ADALORA":
        return _adalora(pulled, folder)
    if kind == "LORA" and not config.get("use_dora"):
        if begins == "pissa":
            rank = 2 * int(config["r"])
            done = _by_svd(pulled, config, rank, folder)
            return Converted(True, f"PiSSA at rank {rank}, twice its own", done.weights_error)
        if isinstance(begins, str) and begins.startswith("pissa"):
            raise _refused(
                pulled, f"what it began with ({begins}) was drawn at random and is not kept"
            )
        return _scaled(pulled, config, folder)
    return _by_svd(pulled, config, rank, folder)


def _scaled(pulled: Pulled, config: dict[str, Any], folder: Path) -> Converted:
    """A LoRA with the scale 1: the method's own goes into B."""
    given = load_file(pulled.folder / WEIGHTS)
    rslora = bool(config.get("use_rslora"))
    if not rslora:
        write_adapter(given, _text(config), folder)
        return Converted(True, "it is a plain LoRA already")
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    weights: Tensors = {}
    for name, tensor in given.items():
        if ".lora_B." in name:
            module = name.rpartition(".lora_B.")[0]
            rank = tensor.shape[1]
            scale = float(_pattern(alphas, module, config["lora_alpha"])) / rank**0.5
            tensor = tensor * scale
        weights[name] = tensor
    made = config | {"use_rslora": False, "lora_alpha": config["r"], "alpha_pattern": ranks}
    write_adapter(weights, _text(made), folder)
    return Converted(True, "rsLoRA, its scale multiplied into B")


def _pattern(patterns: Mapping[str, Any], module: str, usual: Any) -> Any:
    """As PEFT looks them up: by the end of the module's path."""
    found = (value for key, value in patterns.items() if f".{module}".endswith(f".{key}"))
    return next(found, usual)


def _adalora(pulled: Pulled, folder: Path) -> Converted:
    model = with_adapter(plain_base(pulled), pulled)
    assert any(isinstance(module, AdaLoraLayer) for module in model.modules())
    adalora.save_as_lora(model, folder)
    return Converted(True, "AdaLoRA, its singular values multiplied into A")


def _by_svd(pulled: Pulled, given: Mapping[str, Any], rank: int, folder: Path) -> Converted:
    base = plain_base(pulled)
    originals = {
        name: module.weight.data
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    model = with_adapter(base, pulled)
    weights: Tensors = {}
    lost, whole, worst = 0.0, 0.0, (0.0, "")
    names = []
    for path, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        name = path.removeprefix("base_model.model.")
        original = originals.get(name)
        if original is None:
            raise _refused(pulled, f"it changes {name}, which is no linear layer")
        change = _change(layer, original)
        a, b = cut(change, rank)
        size, error = float(change.norm()), float((change - b @ a).norm())
        lost, whole = lost + error**2, whole + size**2
        worst = max(worst, (error / max(size, 1e-12), name))
        names.append(name)
        weights[f"{path}.lora_A.weight"] = filled(a, 0, rank)
        weights[f"{path}.lora_B.weight"] = filled(b, 1, rank)
    if not names:
        raise _refused(pulled, "it changes no linear layer")
    write_adapter(weights, _lora_text(given, rank, names), folder)
    return Converted(
        False,
        f"by singular values at rank {rank}",
        (lost / max(whole, 1e-24)) ** 0.5,
        f"{worst[1]} ({worst[0]:.1%})",
    )


def _change(layer: Any, original: torch.Tensor) -> torch.Tensor:
    """What merging changes of a layer's weight, [out, in]; afterwards the layer's own memory is free again."""
    layer.merge(safe_merge=True)
    linear = layer.get_base_layer()
    change: torch.Tensor = linear.weight.data.float() - original.float()
    linear.weight.data = original
    return change


def _lora_text(given: Mapping[str, Any], rank: int, names: list[str]) -> str:
    return _text(
        {
            "peft_type": "LORA",
            "task_type": given.get("task_type") or "CAUSAL_LM",
            "base_model_name_or_path": given.get("base_model_name_or_path"),
            "r": rank,
            "lora_alpha": rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "target_modules": sorted(names),
        }
    )


def _text(config: Mapping[str, Any]) -> str:
    return json.dumps({**config, "inference_mode": True}, indent=2, sort_keys=True) + "\n"


def _refused(pulled: Pulled, why: str) -> GraftError:
    return GraftError(
        Reason.INVALID_SPEC,
        f"{pulled.version.name} cannot become a plain LoRA: {why}",
        next_step="Merge it into its base instead: graft merge.",
        field="plain_lora",
    )
