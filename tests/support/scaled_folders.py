"""PEFT folders of DoRA and IA3 for a base of make_base or the example base, made in milliseconds and without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.support.models import LINEAR, make_adapter

_IA3 = ("k_proj", "v_proj", "down_proj")


def make_dora(
    folder: Path, base: Path, *, seed: int = 1, rank: int = 8, scale: float = 0.02
) -> Path:
    """On every linear layer, with magnitudes a little off the norms of the base's rows."""
    targets = [module.split(".")[1] for module in LINEAR]
    make_adapter(folder, base, rank=rank, seed=seed, scale=scale, targets=targets)
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}), "utf-8")
    tensors = load_file(folder / "adapter_model.safetensors")
    weights = load_file(base / "model.safetensors") if _is_float32(base) else {}
    draw = np.random.default_rng(seed)
    for name in [each for each in tensors if ".lora_B." in each]:
        size = tensors[name].shape[0]
        weight = weights.get(name.removeprefix("base_model.model.").replace("lora_B.", ""))
        norm = 1.0 if weight is None else np.linalg.norm(weight, axis=1)
        magnitudes = (norm * draw.normal(1, 0.2, size)).astype(np.float32)
        tensors[name.replace(".lora_B.weight", ".lora_magnitude_vector")] = magnitudes
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def make_ia3(folder: Path, base: Path, *, seed: int = 1, spread: float = 0.2) -> Path:
    """Keys, values, and the MLP's last layer at its input, as our trainer's default has it."""
    sizes = json.loads((base / "config.json").read_text("utf-8"))
    heads = sizes["num_attention_heads"]
    kv = sizes["num_key_value_heads"] * sizes.get("head_dim", sizes["hidden_size"] // heads)
    shapes = {
        "self_attn.k_proj": (kv, 1),
        "self_attn.v_proj": (kv, 1),
        "mlp.down_proj": (1, sizes["intermediate_size"]),
    }
    draw = np.random.default_rng(seed)
    tensors = {
        f"base_model.model.model.layers.{layer}.{module}.ia3_l": draw.normal(
            1, spread, shape
        ).astype(np.float32)
        for layer in range(sizes["num_hidden_layers"])
        for module, shape in shapes.items()
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "IA3",
        "task_type": "CAUSAL_LM",
        "target_modules": list(_IA3),
        "feedforward_modules": ["down_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def _is_float32(base: Path) -> bool:
    config = json.loads((base / "config.json").read_text("utf-8"))
    return bool(config.get("dtype") == "float32")  # numpy has no bfloat16.
