"""Adapters that are no LoRA, as commands: pushed, shown, pulled, and named where the endpoint cannot serve them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.unit.cli.conftest import Graft

CONFIGS: dict[str, dict[str, object]] = {
    "IA3": {"target_modules": ["k_proj"], "feedforward_modules": []},
    "PROMPT_TUNING": {"num_virtual_tokens": 4, "token_dim": 64, "prompt_tuning_init": "RANDOM"},
    "BOTTLENECK": {
        "size": 8,
        "activation": "gelu",
        "after_attention": False,
        "after_mlp": True,
        "dropout": 0.0,
    },
}


def tensors(kind: str) -> dict[str, tuple[int, ...]]:
    """For a base of make_base: two layers, 64 wide, one key/value head of 32."""
    layers = [f"base_model.model.model.layers.{layer}" for layer in (0, 1)]
    if kind == "IA3":
        return {f"{layer}.self_attn.k_proj.ia3_l": (32, 1) for layer in layers}
    if kind == "PROMPT_TUNING":
        return {"prompt_embeddings": (4, 64)}
    shapes = {
        "down.weight": (8, 64),
        "down.bias": (8,),
        "up.weight": (64, 8),
        "up.bias": (64,),
    }
    return {
        f"{layer}.mlp_bottleneck.{name}": shape
        for layer in layers
        for name, shape in shapes.items()
    }


def write(folder: Path, kind: str) -> Path:
    folder.mkdir()
    config = {"peft_type": kind, "task_type": "CAUSAL_LM", "inference_mode": True, **CONFIGS[kind]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    draw = np.random.default_rng(0)
    values = {
        name: draw.normal(size=shape).astype(np.float32) for name, shape in tensors(kind).items()
    }
    save_file(values, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_is_pushed_listed_shown_and_pulled_without_a_word_of_ranks(
    graft: Graft, tiny_base: Path, tmp_path: Path, kind: str
) -> None:
    name = kind.lower().replace("_", "-")
    folder = write(tmp_path / "adapter", kind)
    pushed = graft("adapters", "push", name, folder, "--base", tiny_base)
    assert pushed.code == 0, pushed.err
    (line,) = [
        each for each in graft("adapters", "versions", name).out.splitlines() if "pushed" in each
    ]
    # The column between them is the rank's.
    assert re.search(rf"{kind.lower()} +[\d.,]+ [kKM]?i?B", line), line
    shown = graft("adapters", "show", name).out
    (method,) = [each.split() for each in shown.splitlines() if each.startswith("method")]
    assert method == ["method", kind]
    pulled = tmp_path / "pulled"
    assert graft("adapters", "pull", name, pulled).code == 0
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (pulled / file).read_bytes() == (folder / file).read_bytes()

    assert graft("adapters", "promote", name, 1).code == 0
    asked = graft("generate", name, "hello")
    assert asked.code != 0
    assert f"it is {kind}" in asked.err
    assert f"it is {kind}" in " ".join(graft("residency").out.split())
    assert graft("generate", "tiny", "hello", "--max-tokens", 4).code == 0
