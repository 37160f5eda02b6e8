"""LoRA (Hu et al. 2021), and with an NF4 base QLoRA (Dettmers et al. 2023), through PEFT."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from graft.errors import GraftError, Reason
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from services.trainer.run.methods.base import Method
from services.trainer.run.methods.fused import fuse_lora
from services.trainer.spec import LoraSpec

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Lora(Method):
    """Low-rank updates of linear layers.

    Args:
        spec: rank, alpha, dropout and targets.
        base_name: what the adapter's configuration calls its base; never a path.
        gradient_checkpointing: whether activations are recomputed, which a quantized base prepares for.
    """

    name = "lora"

    def __init__(self, spec: LoraSpec, base_name: str, gradient_checkpointing: bool) -> None:
        self._spec = spec
        self._base_name = base_name
        self._gradient_checkpointing = gradient_checkpointing

    def apply(self, model: Any) -> Any:
        targets = list(self._spec.target_modules) or linear_names(model)
        check_targets(model, targets)
        if getattr(model, "is_loaded_in_4bit", False):
            model = prepare_model_for_kbit_training(
                model, use_gradient_checkpointing=self._gradient_checkpointing
            )
        adapted = get_peft_model(
            model,
            LoraConfig(
                r=self._spec.rank,
                lora_alpha=self._spec.alpha,
                lora_dropout=self._spec.dropout,
                target_modules=targets,
                bias="none",
                task_type="CAUSAL_LM",
            ),
        )
        fuse_lora(adapted)
        adapted.peft_config["default"].base_model_name_or_path = self._base_name
        return adapted

    def save(self, model: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        weights = get_peft_model_state_dict(model, save_embedding_layers=False)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        for name, tensor in weights.items():
            if not torch.isfinite(tensor).all():
                raise diverged(f"The tensor {name} holds NaN or infinite numbers")
        save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
        (folder / _CONFIG).write_text(_config_json(model.peft_config["default"]), "utf-8")

    def load(self, model: Any, folder: Path) -> None:
        outcome = set_peft_model_state_dict(model, load_file(folder / _WEIGHTS))
        assert not outcome.unexpected_keys, outcome.unexpected_keys


def linear_names(model: Any) -> list[str]:
    """The names of the model's linear layers that can be adapted, the output head not among them."""
    return sorted({path.rsplit(".", 1)[-1] for path in _linear_paths(model)})


def check_targets(model: Any, targets: Sequence[str]) -> None:
    """Checks that each target names a linear layer of the model that can be adapted.

    Raises:
        GraftError: INVALID_SPEC, naming the targets that do not, and those that there are.
    """
    paths = _linear_paths(model)
    unknown = [
        target
        for target in targets
        if not any(path == target or path.endswith(f".{target}") for path in paths)
    ]
    if unknown:
        raise GraftError(
            Reason.INVALID_SPEC,
            f"The base has no linear layer named {', '.join(unknown)} that can be adapted",
            next_step=f"Use some of {', '.join(linear_names(model))}, or leave target_modules out for all.",
            field="method.lora.target_modules",
        )


def _linear_paths(model: Any) -> list[str]:
    head = model.get_output_embeddings()
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    ]


def diverged(what: str) -> GraftError:
    """The error of a training that left the finite numbers."""
    return GraftError(
        Reason.INVALID_SPEC,
        f"{what}: the training has diverged and nothing was committed",
        next_step="Lower hyperparameters.learning_rate, or raise warmup_ratio; check the data's outliers.",
        field="hyperparameters.learning_rate",
    )


def _config_json(config: Any) -> str:
    """PEFT's configuration, the same bytes for the same settings."""
    values = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
    }
    values["inference_mode"] = True
    return json.dumps(values, indent=2, sort_keys=True, default=str) + "\n"
