"""Tiny models and adapters as files, made in milliseconds and without torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

REPOSITORY = Path(__file__).parents[2]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
LINEAR = {
    "self_attn.q_proj": ("hidden", "hidden"),
    "self_attn.k_proj": ("hidden", "kv"),
    "self_attn.v_proj": ("hidden", "kv"),
    "self_attn.o_proj": ("hidden", "hidden"),
    "mlp.gate_proj": ("hidden", "inner"),
    "mlp.up_proj": ("hidden", "inner"),
    "mlp.down_proj": ("inner", "hidden"),
}


def make_base(folder: Path, *, hidden: int = 64, layers: int = 2, seed: int = 0) -> Path:
    """A Llama of random weights with the example base's tokenizer; heads of 32 features, 1 kv head."""
    folder.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        source = REPOSITORY / "examples/base" / name
        if source.exists():
            shutil.copy(source, folder / name)
    sizes = {"hidden": hidden, "kv": 32, "inner": 2 * hidden}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": sizes["inner"],
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": 1024,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    draw = np.random.default_rng(seed)
    tensors = {
        "model.embed_tokens.weight": draw.normal(0, 0.5, (1024, hidden)),
        "model.norm.weight": np.ones(hidden),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = np.ones(hidden)
        for module, (fan_in, fan_out) in LINEAR.items():
            shape = (sizes[fan_out], sizes[fan_in])
            tensors[f"{prefix}.{module}.weight"] = draw.normal(0, sizes[fan_in] ** -0.5, shape)
    as_float32 = {name: value.astype(np.float32) for name, value in tensors.items()}
    save_file(as_float32, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_adapter(
    folder: Path,
    base: Path,
    *,
    rank: int = 8,
    seed: int = 1,
    scale: float = 0.3,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    config_changes: Mapping[str, object] | None = None,
) -> Path:
    """A PEFT LoRA folder for a base of make_base, with random A and B, so that it changes answers."""
    config = json.loads((base / "config.json").read_text())
    hidden = config["hidden_size"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    sizes = {"hidden": hidden, "kv": kv, "inner": config["intermediate_size"]}
    draw = np.random.default_rng(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module, (fan_in, fan_out) in LINEAR.items():
            if module.split(".")[1] not in targets:
                continue
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{prefix}.lora_A.weight"] = draw.normal(0, scale, (rank, sizes[fan_in]))
            tensors[f"{prefix}.lora_B.weight"] = draw.normal(0, scale, (sizes[fan_out], rank))
    folder.mkdir(parents=True)
    as_float32 = {name: value.astype(np.float32) for name, value in tensors.items()}
    save_file(as_float32, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    adapter_config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(targets),
        "inference_mode": True,
        **(config_changes or {}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter_config, indent=2))
    return folder
