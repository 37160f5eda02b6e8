"""Quantizes a merged model's folder: NF4 by bitsandbytes, or 4-bit integers in compressed-tensors' packed form.

The integers are rounded to nearest, with the scale of least error per group; there is no calibration, which llm-compressor would bring and which
does not install beside this transformers yet.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from services.trainer.run.model_jobs.assembling import refuse_repacked

_GROUPS = (128, 64, 32)
# Of the scale that a group's largest number would need.
_SHARES = tuple(1 - 0.03 * step for step in range(12))
_KEPT_JSON = ("config.json", "generation_config.json", "model.safetensors.index.json")


def requantize(merged: Path, folder: Path, kind: str) -> None:
    """Writes the merged model to a new folder in 4 bits.

    Args:
        merged: in 16 or 32 bits.
        folder: a new one.
        kind: "nf4" or "w4a16".
    """
    {"nf4": _nf4, "w4a16": _w4a16}[kind](merged, folder)
    for path in merged.iterdir():
        if path.suffix != ".safetensors" and path.name not in _KEPT_JSON:
            shutil.copyfile(path, folder / path.name)


def _nf4(merged: Path, folder: Path) -> None:
    stored = _stored_type(merged)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=stored,
    )
    model = AutoModelForCausalLM.from_pretrained(
        merged, quantization_config=config, dtype=stored, device_map={"": _device()}
    )
    refuse_repacked(model)
    model.save_pretrained(folder)


def _w4a16(merged: Path, folder: Path) -> None:
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        apply_quantization_config,
    )

    model = AutoModelForCausalLM.from_pretrained(merged, dtype=_stored_type(merged))
    args = _weight_args(model)
    config = QuantizationConfig(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=args)},
        ignore=["lm_head"],
        quantization_status=QuantizationStatus.INITIALIZED,
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            _set_scales(module, args)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))


def _weight_args(model: Any) -> Any:
    """4 bits, symmetric, in the widest groups that all layers' inputs can be divided into; else per row."""
    from compressed_tensors.quantization import QuantizationArgs

    widths = {
        module.in_features
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    group = next((size for size in _GROUPS if all(width % size == 0 for width in widths)), None)
    if group is None:
        return QuantizationArgs(num_bits=4, symmetric=True, strategy="channel")
    return QuantizationArgs(num_bits=4, symmetric=True, strategy="group", group_size=group)


def _set_scales(module: Any, args: Any) -> None:
    """Sets each group's scale: of those that cut off its largest numbers a little, the one with the least error."""
    from compressed_tensors.quantization.utils import calculate_qparams

    weight = module.weight.data.float()
    grouped = weight.unflatten(1, (-1, args.group_size or weight.shape[1]))
    whole, _ = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    best, least = whole, torch.full_like(whole, torch.inf)
    for share in _SHARES:
        scale = whole * share
        steps = (grouped / scale[..., None]).round().clamp(-8, 7)
        error = (steps * scale[..., None] - grouped).square().sum(-1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    module.weight_scale.data = best.to(module.weight_scale.dtype)


def _stored_type(folder: Path) -> torch.dtype:
    stored = getattr(AutoConfig.from_pretrained(folder), "dtype", None)
    return stored if isinstance(stored, torch.dtype) else torch.float32


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
