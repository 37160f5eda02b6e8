"""The files of an adapter with scales: its kind, and which tensor scales what. Needs safetensors and torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

DORA, IA3 = "DORA", "IA3"
_MAGNITUDES = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")
_IA3 = ".ia3_l"


@dataclass(frozen=True, slots=True)
class Vector:
    """One tensor of scales.

    Attributes:
        tensor: its name in the file.
        values: float32, one per feature.
        at_input: whether it scales what goes into the module.
    """

    tensor: str
    values: torch.Tensor
    at_input: bool = False


@dataclass(frozen=True, slots=True)
class ScaledFiles:
    """What is in a folder.

    Attributes:
        pairs: LoRA's own tensors, by name.
        vectors: by the module's name as PEFT writes it, "base_model.model." included.
    """

    pairs: Mapping[str, torch.Tensor]
    vectors: Mapping[str, Vector]


def scaled_kind(config: Mapping[str, Any]) -> str:
    """ "DORA", "IA3", or nothing, for an adapter_config.json."""
    if config.get("peft_type") == "IA3":
        return IA3
    return DORA if config.get("use_dora") else ""


def read_scaled(folder: Path, kind: str, expected: Collection[str]) -> ScaledFiles:
    """Reads it.

    Args:
        expected: ends of the names of modules that adapters may be on.

    Raises:
        ValueError: naming the tensor.
    """
    tensors = load_file(folder / "adapter_model.safetensors")
    pairs: dict[str, torch.Tensor] = {}
    vectors: dict[str, Vector] = {}
    for name, tensor in tensors.items():
        module = _module(name, kind)
        if module is None:
            pairs[name] = tensor
            continue
        if module.rpartition(".")[2] not in expected:
            raise ValueError(
                f"tensor {name}: scales of {module.rpartition('.')[2]} are not computed here; "
                f"those of {', '.join(sorted(expected))} are"
            )
        if module in vectors:
            raise ValueError(f"tensor {name}: {vectors[module].tensor} is of the same module")
        vectors[module] = _vector(name, tensor, kind)
    if kind == IA3 and pairs:
        raise ValueError(f"tensor {min(pairs)}: an IA3 has none but {_IA3}")
    if not vectors:
        raise ValueError(f"{folder}: it has no tensor of scales, though it is {kind}")
    return ScaledFiles(pairs, vectors)


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter_config.json, which is an object.

    Raises:
        OSError, ValueError.
    """
    config = json.loads((folder / "adapter_config.json").read_bytes())
    if not isinstance(config, dict):
        raise ValueError(f"{folder}/adapter_config.json is no object")
    return config


def _module(name: str, kind: str) -> str | None:
    for suffix in _MAGNITUDES if kind == DORA else (_IA3,):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return None


def _vector(name: str, tensor: torch.Tensor, kind: str) -> Vector:
    if kind == DORA:
        if tensor.ndim != 1:
            raise ValueError(f"tensor {name}: its shape is {list(tensor.shape)}, and not [out]")
        return Vector(name, tensor.float())
    # PEFT: [1, in] for a feedforward module, whose input is scaled; else [out, 1].
    if tensor.ndim != 2 or 1 not in tensor.shape:
        raise ValueError(
            f"tensor {name}: its shape is {list(tensor.shape)}, not [out, 1] or [1, in]"
        )
    return Vector(name, tensor.float().flatten(), at_input=tensor.shape[0] == 1)
