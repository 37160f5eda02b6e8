"""What the first request for a blend waits for: two adapters of a 0.5B base, computed aside as the service does it.

The peer is PEFT's own add_weighted_adapter in a fresh process, on a base without weights: what a service would start
that has PEFT do it. Both are given the same files, and both write a folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from graft.blends import combining
from safetensors.numpy import save_file

from bench.harness import Measurement, Report, compare
from services.combining.plain import Source
from services.inference.blends.process import BlendingOptions, ProcessBlender

# As Qwen2.5-0.5B: features, of the inner layers, of the keys, layers; all seven linear modules.
_HIDDEN, _INNER, _KEYS, _LAYERS = 896, 4864, 128, 24
_RANK = 16
_KINDS = ("cat", "linear", "svd", "ties", "dare_linear")
_MODULES = {
    "self_attn.q_proj": (_HIDDEN, _HIDDEN), "self_attn.k_proj": (_HIDDEN, _KEYS),
    "self_attn.v_proj": (_HIDDEN, _KEYS), "self_attn.o_proj": (_HIDDEN, _HIDDEN),
    "mlp.gate_proj": (_HIDDEN, _INNER), "mlp.up_proj": (_HIDDEN, _INNER),
    "mlp.down_proj": (_INNER, _HIDDEN),
}  # fmt: skip
_PEER = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Qwen2Config
first, second, out, kind, shape = json.loads(sys.argv[1])
torch.set_num_threads(1)
config = Qwen2Config(**shape)
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(config)
for module in model.modules():
    for name, parameter in list(module.named_parameters(recurse=False)):
        light = torch.nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False)
        setattr(module, name, light)
model = PeftModel.from_pretrained(model, first, adapter_name="a")
model.load_adapter(second, adapter_name="b")
density = 0.5 if kind in ("ties", "dare_linear") else None
model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "c", kind, density=density, svd_full_matrices=False)
model.save_pretrained(out, selected_adapters=["c"])
"""


def run(short: bool = False) -> Report:
    """Every kind in every round; the sum alone when short."""
    kinds = _KINDS[:1] if short else _KINDS
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as folder:
        root = Path(folder)
        sources = [
            Source(name, _adapter(root / name, seed), weight)
            for seed, (name, weight) in enumerate((("a", 0.7), ("b", 0.3)))
        ]
        return compare(
            "blends",
            {
                "graft": lambda: _timed(kinds, root, lambda kind, out: _ours(kind, sources, out)),
                "peft": lambda: _timed(kinds, root, lambda kind, out: _peft(kind, sources, out)),
            },
            rounds=1 if short else 3,
            settings={"adapters": 2, "rank": _RANK, "layers": _LAYERS, "modules": len(_MODULES)},
        )


def _timed(kinds: tuple[str, ...], root: Path, blend: Callable[[str, Path], None]) -> Measurement:
    figures = {}
    for kind in kinds:
        with tempfile.TemporaryDirectory(dir=root) as out:
            began_s = time.perf_counter()
            blend(kind, Path(out))
            figures[f"{kind}_s"] = time.perf_counter() - began_s
    return figures


def _ours(kind: str, sources: list[Source], out: Path) -> None:
    blender = ProcessBlender(BlendingOptions())
    asyncio.run(blender.blend("bench", sources, combining(kind), _RANK, out))


def _peft(kind: str, sources: list[Source], out: Path) -> None:
    shape = {
        "hidden_size": _HIDDEN, "intermediate_size": _INNER, "num_hidden_layers": _LAYERS,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 1024,
    }  # fmt: skip
    asked = [*(str(one.folder) for one in sources), str(out), kind, shape]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-c", _PEER, json.dumps(asked)],
        env=environment, check=True, capture_output=True,
    )  # fmt: skip


def _adapter(folder: Path, seed: int) -> Path:
    """A PEFT folder with random numbers."""
    draw, tensors = np.random.default_rng(seed), {}
    for layer in range(_LAYERS):
        for module, (fan_in, fan_out) in _MODULES.items():
            path = f"base_model.model.model.layers.{layer}.{module}"
            for half, shape in (("A", (_RANK, fan_in)), ("B", (fan_out, _RANK))):
                numbers = draw.normal(0, 0.02, shape).astype(np.float32)
                tensors[f"{path}.lora_{half}.weight"] = numbers
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": _RANK, "lora_alpha": 2 * _RANK,
        "target_modules": [module.rpartition(".")[2] for module in _MODULES],
        "base_model_name_or_path": "qwen2", "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
