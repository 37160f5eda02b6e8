"""A base in GPTQ's 4-bit form, made from one in floats by rounding, without a library; and what its numbers stand for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Array = NDArray[Any]
_PER_INT32 = 8
_MIDDLE = 8


def make_gptq(base: Path, quantized: Path, undone: Path, *, group: int = 32) -> None:
    """Writes a base's linear layers as 4-bit integers, and to another folder in floats what these stand for.

    Args:
        base: of make_base(), in float32.
        quantized: a new folder, symmetric, with groups of inputs.
        undone: a new folder with the same numbers in float32.
    """
    tensors = load_file(base / "model.safetensors")
    packed: dict[str, Array] = {}
    plain: dict[str, Array] = {}
    for name, weight in tensors.items():
        if not name.endswith("_proj.weight"):
            packed[name] = plain[name] = weight
            continue
        stem = name.removesuffix(".weight")
        steps, scales = _rounded(weight, group)
        plain[name] = _values(steps, scales, group)
        packed[f"{stem}.qweight"] = _packed_rows(steps)
        packed[f"{stem}.scales"] = scales.astype(np.float16)
        # GPTQ's first format keeps the zero point less one.
        zeros = np.full(scales.shape, _MIDDLE - 1, np.int64)
        packed[f"{stem}.qzeros"] = _packed_columns(zeros)
        inputs = steps.shape[0]
        packed[f"{stem}.g_idx"] = (np.arange(inputs) // group).astype(np.int32)
    for folder, found in ((quantized, packed), (undone, plain)):
        shutil.copytree(base, folder)
        # Written as they lie in memory, whatever their strides are.
        as_rows = {name: np.ascontiguousarray(one) for name, one in found.items()}
        save_file(as_rows, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": group,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "checkpoint_format": "gptq",
    }
    (quantized / "config.json").write_text(json.dumps(config, indent=2))


def _rounded(weight: Array, group: int) -> tuple[Array, Array]:
    """Steps from 0 to 15 of shape (inputs, outputs), and scales of shape (groups, outputs) as float16 holds them."""
    grouped = weight.T.reshape(-1, group, weight.shape[0])
    scales = (np.abs(grouped).max(axis=1) / 7).astype(np.float16).astype(np.float32)
    steps = np.clip(np.rint(grouped / scales[:, None, :]) + _MIDDLE, 0, 15)
    return steps.reshape(-1, weight.shape[0]).astype(np.int64), scales


def _values(steps: Array, scales: Array, group: int) -> Array:
    values = (steps - _MIDDLE) * np.repeat(scales, group, axis=0)
    plain: Array = values.T.astype(np.float32)
    return plain


def _packed_rows(steps: Array) -> Array:
    """Eight inputs in one int32, the first lowest."""
    parts = steps.reshape(-1, _PER_INT32, steps.shape[1])
    shifts = 4 * np.arange(_PER_INT32)[None, :, None]
    packed: Array = (parts << shifts).sum(axis=1).astype(np.uint32).view(np.int32)
    return packed


def _packed_columns(zeros: Array) -> Array:
    parts = zeros.reshape(zeros.shape[0], -1, _PER_INT32)
    packed: Array = (parts << (4 * np.arange(_PER_INT32))).sum(axis=2).astype(np.uint32)
    return packed.view(np.int32)
