"""PEFT folders of several adapters, combined into one more: the same bytes for the same adapters, weights and way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from graft.blends import Combining
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from services.combining.plain import (
    TEMPLATE,
    NotCombinableError,
    Source,
    check_plain,
    check_ranks,
    largest_rank,
    scale_of,
    template_of,
)
from services.combining.tensors import Update, combined

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LINEAR = (".lora_A.weight", ".lora_B.weight")
_EMBEDDING = (".lora_embedding_A", ".lora_embedding_B")
# As the layers of most bases hold them; it decides which draws of dare are whose.
_ORDER = ("model", "embed_tokens", "layers", "self_attn", "mlp", "q_proj", "k_proj", "v_proj",
          "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Part:
    source: Source
    config: Mapping[str, Any]
    modules: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    embeddings: frozenset[str]

    def update(self, module: str) -> Update:
        a, b = self.modules[module]
        path = module.removeprefix(_PREFIX)
        return Update(a, b, scale_of(self.config, path, a.shape[0]), self.source.weight)


def combine_folders(sources: Sequence[Source], how: Combining, folder: Path) -> int:
    """Writes the combined adapter to a folder; returns its rank.

    Raises:
        NotCombinableError: naming the adapter.
    """
    parts = [_read(source) for source in sources]
    check_ranks({part.source.name: largest_rank(part.config) for part in parts}, how)
    rank = how.rank_of(largest_rank(part.config) for part in parts)
    draws = torch.Generator().manual_seed(how.seed)
    weights: dict[str, torch.Tensor] = {}
    modules = sorted({module for part in parts for module in part.modules}, key=_order)
    for module in modules:
        having = [part for part in parts if module in part.modules]
        _check_shapes(module, having, how)
        a, b = combined([part.update(module) for part in having], how, rank, draws)
        ends = _EMBEDDING if module in having[0].embeddings else _LINEAR
        weights |= {module + ends[0]: a, module + ends[1]: b}
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise NotCombinableError(
                f"The combination's {name} holds NaN or infinite numbers", "Use smaller weights."
            )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    (folder / _CONFIG).write_text(_config(parts[0].config, rank, modules), "utf-8")
    template = template_of(sources)
    if template is not None:
        shutil.copyfile(template, folder / TEMPLATE)
    return rank


def _read(source: Source) -> _Part:
    try:
        config = json.loads((source.folder / _CONFIG).read_text("utf-8"))
        tensors = load_file(source.folder / _WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise NotCombinableError(
            f"The files of {source.name} cannot be read ({error})", "Commit it anew."
        ) from None
    check_plain(source.name, config)
    modules, embeddings = {}, set()
    for name, tensor in tensors.items():
        for a_end, b_end in (_LINEAR, _EMBEDDING):
            if name.endswith(a_end):
                module = name.removesuffix(a_end)
                other = tensors.get(module + b_end)
                if other is None or tensor.dim() != 2 or other.dim() != 2:
                    raise NotCombinableError(
                        f"{source.name} has a {name} that is no half of a pair of matrices",
                        "Make a plain LoRA of it first: graft convert.",
                    )
                modules[module] = tensor.float(), other.float()
                if a_end == _EMBEDDING[0]:
                    embeddings.add(module)
    if 2 * len(modules) != len(tensors):
        raise NotCombinableError(
            f"{source.name} holds more than pairs of A and B",
            "Make a plain LoRA of it first: graft convert.",
        )
    return _Part(source, config, modules, frozenset(embeddings))


def _check_shapes(module: str, parts: Sequence[_Part], how: Combining) -> None:
    """The same module has the same sizes, and the same rank where A is added to A."""

    def shape(part: _Part) -> tuple[int, ...]:
        a, b = part.modules[module]
        return (a.shape[1], b.shape[0], a.shape[0] if how.needs_equal_ranks else 0)

    first = parts[0]
    for part in parts[1:]:
        if shape(part) != shape(first):
            raise NotCombinableError(
                f"{module.removeprefix(_PREFIX)} has other sizes in {part.source.name} than in "
                f"{first.source.name}",
                "Combine adapters of one base; for unequal ranks use cat, or a kind that ends with svd.",
            )


def _order(module: str) -> list[tuple[int, int, str]]:
    """As people count and layers compute, not as text sorts: layer 2 before layer 10, q before k."""

    def rank(word: str) -> tuple[int, int, str]:
        if word.isdigit():
            return 1, int(word), ""
        known = word in _ORDER
        return 0, _ORDER.index(word) if known else len(_ORDER), "" if known else word

    return [rank(word) for word in module.removeprefix(_PREFIX).split(".")]


def _config(first: Mapping[str, Any], rank: int, modules: Sequence[str]) -> str:
    made = {
        "peft_type": "LORA",
        "task_type": first.get("task_type") or "CAUSAL_LM",
        "base_model_name_or_path": first.get("base_model_name_or_path"),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": bool(first.get("fan_in_fan_out")),
        "init_lora_weights": True,
        "inference_mode": True,
        "target_modules": sorted(module.removeprefix(_PREFIX) for module in modules),
    }
    return json.dumps(made, indent=2, sort_keys=True) + "\n"
