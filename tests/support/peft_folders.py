"""Adapters of every kind, made by PEFT itself (the bottleneck by Graft), with random numbers so that each changes answers.

Imports torch; for tests of one process, each kind made once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from services.trainer.run import bottleneck

_TASK = {"task_type": "CAUSAL_LM"}
_TARGETS = ["q_proj", "down_proj"]
_IDS = [[1, 5, 9, 200, 17]]
_SHAPE = bottleneck.Shape(size=8, activation="gelu", after_attention=True, after_mlp=True)
CONFIGS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=_TARGETS, **_TASK),
    "rslora": lambda: peft.LoraConfig(r=4, use_rslora=True, target_modules=_TARGETS, **_TASK),
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=_TARGETS, **_TASK),
    "adalora": lambda: peft.AdaLoraConfig(
        init_r=6, target_r=3, total_step=10, tinit=1, tfinal=1, target_modules=_TARGETS, **_TASK
    ),
    "ia3": lambda: peft.IA3Config(
        target_modules=[*_TARGETS, "k_proj"], feedforward_modules=["down_proj"], **_TASK
    ),
    "prompt_tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=5, **_TASK),
    "p_tuning": lambda: peft.PromptEncoderConfig(
        num_virtual_tokens=5, encoder_hidden_size=16, **_TASK
    ),
    "prefix_tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=5, **_TASK),
    "reward": lambda: peft.LoraConfig(
        r=4, target_modules=_TARGETS, task_type="SEQ_CLS", modules_to_save=["score"]
    ),
}
KINDS = (*CONFIGS, "bottleneck")


def make(kind: str, base: Path, folder: Path) -> np.ndarray[Any, Any]:
    """Writes an adapter of a kind; answers what the model with it gives for a prompt."""
    torch.manual_seed(3)
    if kind == "bottleneck":
        model = bottleneck.attach(_base(base, kind), _SHAPE, trained=True)
    else:
        model = peft.get_peft_model(_base(base, kind), CONFIGS[kind]())
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor.add_(0.3 * torch.randn_like(tensor))
    if kind == "adalora":
        _prune(model)
    if kind == "bottleneck":
        bottleneck.save(model, _SHAPE, "tiny", folder)
    else:
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
    return _logits(model)


def load(base: Path, folder: Path) -> np.ndarray[Any, Any]:
    """What a fresh base with the adapter of a folder gives for the same prompt."""
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    kind = "reward" if config["task_type"] == "SEQ_CLS" else ""
    if config["peft_type"] == "BOTTLENECK":
        return _logits(bottleneck.load_bottleneck(_base(base, kind), folder))
    return _logits(peft.PeftModel.from_pretrained(_base(base, kind), str(folder)))


def plain(base: Path, kind: str) -> np.ndarray[Any, Any]:
    """What the base alone gives."""
    return _logits(_base(base, kind))


def _base(folder: Path, kind: str) -> Any:
    if kind == "reward":
        torch.manual_seed(4)
        return AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, pad_token_id=0
        )
    return AutoModelForCausalLM.from_pretrained(folder)


def _prune(model: Any) -> None:
    """Ten steps, in which PEFT's allocator takes rank from modules."""
    ids = torch.tensor(_IDS)
    for step in range(1, 11):
        model(input_ids=ids, labels=ids).loss.backward()
        model.base_model.update_and_allocate(step)
        model.zero_grad()


def _logits(model: Any) -> np.ndarray[Any, Any]:
    model.eval()
    with torch.no_grad():
        found: np.ndarray[Any, Any] = model(input_ids=torch.tensor(_IDS)).logits.float().numpy()
    return found
