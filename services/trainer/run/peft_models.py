"""What methods that go through PEFT share: the adapted model, and its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from graft.errors import GraftError, Reason
from peft import (
    LoraConfig,
    PeftConfig,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file

from services.trainer.methods.base import Setting
from services.trainer.run.fused import fuse_lora

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Files = Mapping[str, Mapping[str, torch.Tensor] | bytes]


def lora_config(task_type: str, **options: Any) -> LoraConfig:
    """PEFT's configuration of a LoRA without trained biases."""
    return LoraConfig(task_type=task_type, bias="none", **options)


def adapt(model: Any, config: PeftConfig, setting: Setting) -> Any:
    """The model with PEFT's trainable parameters, prepared for training where the base is quantized."""
    if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=setting.gradient_checkpointing
        )
    adapted = get_peft_model(model, config)
    fuse_lora(adapted)
    adapted.peft_config["default"].base_model_name_or_path = setting.base_name
    return adapted


def save_adapter(model: Any, folder: Path) -> None:
    """Writes the adapter in PEFT's layout.

    Raises:
        GraftError: INVALID_SPEC, when a trained number is not finite.
    """
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    write_adapter(weights, config_json(model.peft_config["default"]), folder)


def adapter_files(model: Any) -> Files:
    """The files of save_adapter(), for a checkpoint; the tensors are the model's own."""
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {WEIGHTS: weights, CONFIG: config_json(model.peft_config["default"]).encode()}


def write_adapter(weights: dict[str, torch.Tensor], config: str, folder: Path) -> None:
    """Writes tensors and configuration to a folder.

    Raises:
        GraftError: INVALID_SPEC, when a number is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    check_finite(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(config, "utf-8")


def check_finite(weights: dict[str, torch.Tensor]) -> None:
    """Checks that every number is one.

    Raises:
        GraftError: INVALID_SPEC, naming the tensor.
    """
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise diverged(f"The tensor {name} holds NaN or infinite numbers")


def load_adapter(model: Any, folder: Path) -> None:
    """Puts back what save_adapter() wrote, or adapter_files() gave."""
    outcome = set_peft_model_state_dict(model, load_file(folder / WEIGHTS))
    assert not outcome.unexpected_keys, outcome.unexpected_keys


def trained_files(model: Any) -> Files:
    """Every trained number as it is, for a checkpoint; the tensors are the model's own."""
    return {WEIGHTS: dict(_trained(model))}


def load_trained(model: Any, folder: Path) -> None:
    """Puts back what trained_files() gave."""
    tensors = load_file(folder / WEIGHTS)
    for name, parameter in _trained(model):
        parameter.data.copy_(tensors[name])


def _trained(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def diverged(what: str) -> GraftError:
    """The error of a training that left the finite numbers."""
    return GraftError(
        Reason.INVALID_SPEC,
        f"{what}: the training has diverged and nothing was committed",
        next_step="Lower hyperparameters.learning_rate, or raise warmup_ratio; check the data's outliers.",
        field="hyperparameters.learning_rate",
    )


def config_json(config: Any) -> str:
    """PEFT's configuration, the same bytes for the same settings."""
    values = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }
    values["inference_mode"] = True
    return json.dumps(values, indent=2, sort_keys=True, default=str) + "\n"
