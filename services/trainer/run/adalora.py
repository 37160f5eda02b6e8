"""AdaLoRA's state: PEFT's configuration, the orthogonality penalty, checkpoints, and the plain LoRA that is equal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from graft.errors import GraftError, Reason
from peft import AdaLoraConfig as PeftAdaLora
from peft import LoraConfig
from peft.tuners.adalora import AdaLoraLayer
from safetensors.torch import load_file

from services.trainer.methods.adalora import AdaLoraConfig
from services.trainer.methods.base import Setting
from services.trainer.run.peft_models import Files, config_json, write_adapter

_TENSORS, _ALLOCATOR, _PATTERN = "adalora.safetensors", "allocator.safetensors", "ranks.json"
_ESTIMATES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
_ADAPTER = "default"


def peft_config(
    config: AdaLoraConfig, setting: Setting, targets: list[str], transposed: bool
) -> PeftAdaLora:
    """PEFT's configuration. The penalty is ours to add, so PEFT's own has no weight.

    Raises:
        GraftError: INVALID_SPEC, when the run is too short to move ranks.
    """
    steps = setting.total_steps
    warmup, final = round(config.warmup_ratio * steps), round(config.final_ratio * steps)
    if steps - final < 2:
        # Importance is measured in at least one step before the ranks are fixed in another.
        raise _too_short(steps)
    # PEFT wants a step between the two.
    warmup = max(0, min(warmup, steps - final - 1))
    return PeftAdaLora(
        task_type=setting.task_type,
        target_r=config.target_rank,
        init_r=config.initial_rank,
        tinit=warmup,
        tfinal=final,
        total_step=steps,
        orth_reg_weight=0.0,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        fan_in_fan_out=transposed,
        bias="none",
    )


def _too_short(steps: int) -> GraftError:
    return GraftError(
        Reason.INVALID_SPEC,
        f"AdaLoRA moves ranks while it trains, and this run has too few optimizer steps for it: {steps}",
        next_step="Raise hyperparameters.epochs or max_steps, lower method.adalora.final_ratio, or use lora.",
        field="hyperparameters.max_steps",
    )


def orthogonality(model: Any) -> torch.Tensor:
    """Mean Frobenius norm of A A' - I and B' B - I (Zhang et al. 2023, equation 4)."""
    norms = []
    for _, layer in _layers(model):
        a, b = layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]
        identity = torch.eye(a.shape[0], dtype=a.dtype, device=a.device)
        norms += [torch.norm(a @ a.T - identity), torch.norm(b.T @ b - identity)]
    return torch.stack(norms).mean()


def save_as_lora(model: Any, folder: Path) -> None:
    """Writes the LoRA that does the same: A scaled by the singular values, B by the rest; zeros fill the rank.

    Raises:
        GraftError: INVALID_SPEC, when a trained number is not finite.
    """
    layers = list(_layers(model))
    kept = {name: layer.lora_E[_ADAPTER].flatten() != 0 for name, layer in layers}
    rank = max(1, max(int(mask.sum()) for mask in kept.values()))
    weights = _heads(model)
    for name, layer in layers:
        mask = kept[name]
        values, a = layer.lora_E[_ADAPTER][mask], layer.lora_A[_ADAPTER][mask]
        b = layer.lora_B[_ADAPTER][:, mask]
        # As PEFT's forward pass scales: by alpha over the rank that it began with.
        scale = layer.scaling[_ADAPTER] / (layer.ranknum[_ADAPTER] + 1e-5)
        weights[f"{name}.lora_A.weight"] = _grown(a * values, 0, rank)
        weights[f"{name}.lora_B.weight"] = _grown(b * scale, 1, rank)
    given = model.peft_config[_ADAPTER]
    config = LoraConfig(
        task_type=given.task_type,
        r=rank,
        lora_alpha=rank,
        target_modules=given.target_modules,
        modules_to_save=given.modules_to_save,
        fan_in_fan_out=given.fan_in_fan_out,
        base_model_name_or_path=given.base_model_name_or_path,
    )
    write_adapter(weights, config_json(config), folder)


def _grown(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    missing = list(tensor.shape)
    missing[dim] = size - missing[dim]
    return torch.cat([tensor.detach(), tensor.new_zeros(missing)], dim=dim)


def checkpoint_files(model: Any) -> Files:
    """A checkpoint: all tensors unreduced, and what the allocator knows; the tensors are the model's own."""
    allocator = model.base_model.rankallocator
    estimates = {
        f"{kind}|{name}": tensor
        for kind in _ESTIMATES
        for name, tensor in getattr(allocator, kind).items()
    }
    pattern = json.dumps(model.peft_config[_ADAPTER].rank_pattern).encode()
    return {_TENSORS: dict(_trained(model)), _ALLOCATOR: estimates, _PATTERN: pattern}


def load_state(model: Any, folder: Path) -> None:
    """Puts back what checkpoint_files() gave."""
    tensors = load_file(folder / _TENSORS)
    for name, parameter in _trained(model):
        parameter.data.copy_(tensors[name])
    allocator = model.base_model.rankallocator
    allocator.reset_ipt()
    for name, tensor in load_file(folder / _ALLOCATOR).items():
        kind, _, parameter_name = name.partition("|")
        getattr(allocator, kind)[parameter_name] = tensor.to(model.device)
    model.peft_config[_ADAPTER].rank_pattern = json.loads((folder / _PATTERN).read_bytes())


def _heads(model: Any) -> dict[str, torch.Tensor]:
    """What is trained beside the low-rank updates: a reward model's head."""
    marker = f".modules_to_save.{_ADAPTER}"
    return {
        name.replace(marker, ""): parameter for name, parameter in _trained(model) if marker in name
    }


def _trained(model: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, AdaLoraLayer):
            yield name, module
