"""Bases of published architectures with random weights: speed and memory do not depend on their values.

They are written to a folder, so that they are loaded, and quantized, as every base is. Nothing is fetched.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

_TOKENIZER = Path(__file__).parents[2] / "examples/base"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_MOST_TOKENS = 32768


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes of a Qwen2.5 model, as its config.json gives them."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    def config(self) -> Qwen2Config:
        """As transformers has it; tokens 0, 1 and 2 pad, begin and end, as the examples' tokenizer has it."""
        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=_MOST_TOKENS,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            tie_word_embeddings=self.tied,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )


TINY = Architecture("tiny", 64, 128, 2, 2, 1, 8192, True)
QWEN25_05B = Architecture("Qwen2.5-0.5B", 896, 4864, 24, 14, 2, 151936, True)
QWEN25_15B = Architecture("Qwen2.5-1.5B", 1536, 8960, 28, 12, 2, 151936, True)
QWEN25_7B = Architecture("Qwen2.5-7B", 3584, 18944, 28, 28, 4, 152064, False)


def device() -> torch.device:
    """The CUDA device, or the CPU, on which only tiny ones are of use."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def storage_dtype() -> torch.dtype:
    """What weights are stored in: bfloat16 as published, float32 on a CPU, which computes in it."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def write_base(architecture: Architecture, folder: Path, seed: int = 0) -> Path:
    """Draws weights and writes them, with the examples' tokenizer, to a new folder; returns it."""
    torch.manual_seed(seed)
    with device():
        model: Any = AutoModelForCausalLM.from_config(
            architecture.config(), dtype=storage_dtype(), attn_implementation="sdpa"
        )
    model.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        shutil.copy(_TOKENIZER / name, folder / name)
    return folder
