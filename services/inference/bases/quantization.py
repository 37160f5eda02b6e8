"""How a base is quantized, by its config.json, and whether this machine's engine can serve that.

Knows no vLLM: what it can do is told by a Device (engines/vllm_device.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.errors import GraftError, Reason

NONE = "none"
# Of checkpoints, in the contract's words.
_SIMPLE = {"gptq": "gptq", "awq": "awq", "fp8": "fp8", "fbgemm_fp8": "fp8", "mxfp4": "mxfp4"}
# What quantizes while it loads, and what that makes of a base.
_ONLINE_FP8 = ("fp8", "fp8_per_tensor", "fp8_per_block", "fp8_per_channel")
_BNB = "bitsandbytes"
# Whose kernels know no float32.
_HALVES = ("gptq", "awq")
_W4A16 = "graft merge ... --quantize w4a16"


@dataclass(frozen=True, slots=True)
class Quantization:
    """A base's quantization.

    Attributes:
        method: as vLLM names it; empty for none.
        kind: in the contract's words: "none", "nf4", "int8", "gptq", "awq", "fp8", "w4a16", "w8a8" ...
        bits: of a weight; 16 where that is not said.
        online: the weights are quantized while they are loaded.
    """

    method: str = ""
    kind: str = NONE
    bits: int = 16
    online: bool = False


@dataclass(frozen=True, slots=True)
class Device:
    """What an engine computes on.

    Attributes:
        name: for people.
        cuda: an NVIDIA GPU, and not a CPU.
        capability: compute capability times ten; 0 on a CPU.
        methods: quantizations that the engine knows, with the least capability of each.
    """

    name: str
    cuda: bool
    capability: int
    methods: Mapping[str, int]


def read_quantization(folder: Path, asked: str | None = None) -> Quantization:
    """Of a base's folder.

    Args:
        asked: what the engine is told to do; None for what config.json says.

    Raises:
        GraftError: NOT_A_MODEL.
    """
    config = _config(folder)
    found = config.get("quantization_config") or config.get("compression_config")
    stored = Quantization() if not found else _stored(folder, found)
    if not asked or asked == stored.method:
        return stored
    if stored.method:
        # vLLM has several names for one: "gptq_marlin" for "gptq".
        if stored.method in asked:
            return stored
        raise _not_served(
            folder,
            f"its config.json says {stored.method} ({stored.kind}), and {asked!r} is asked for",
            "Leave quantization (GRAFT_INFERENCE_QUANTIZATION) out: the base says how it is quantized.",
        )
    kind = "fp8" if asked in _ONLINE_FP8 else "nf4" if asked == _BNB else asked
    return Quantization(asked, kind, 4 if asked == _BNB else 8, online=True)


def check_device(
    folder: Path, found: Quantization, device: Device, *, with_lora: bool, dtype: str = "auto"
) -> None:
    """Refuses what the engine would end with a traceback for, at its start or at its first token.

    Raises:
        GraftError: NOT_A_MODEL, with what can be done instead.
    """
    if not found.method:
        return
    if found.method == _BNB and _BNB not in device.methods:
        how = (
            "Install vllm-bnb-plugin beside vLLM, which has kept bitsandbytes out of itself since 0.28"
            if device.cuda
            else "Serve it on a GPU (with vllm-bnb-plugin)"
        )
        raise _not_served(
            folder,
            f"it is bitsandbytes ({found.kind}), which vLLM does not know on {device.name}",
            f"{how}, or make it w4a16, which both serve: {_W4A16}.",
        )
    if found.method not in device.methods:
        raise _not_served(
            folder,
            f"it is quantized by {found.method}, which this vLLM does not know",
            f"Quantize it with one of {', '.join(sorted(_named(device)))}, or serve it unquantized.",
        )
    if dtype == "float32" and (found.method in _HALVES or not device.cuda):
        raise _not_served(
            folder,
            f"it is {found.kind}, which is computed in 16 bits, and float32 is asked for",
            "Set GRAFT_INFERENCE_DTYPE=auto or bfloat16, or switch with --dtype bfloat16.",
        )
    least = device.methods[found.method]
    if device.cuda:
        if device.capability < least:
            raise _not_served(
                folder,
                f"{found.method} ({found.kind}) takes compute capability {least / 10:.1f}, and "
                f"{device.name} has {device.capability / 10:.1f}",
                f"Use a newer GPU, or make it w4a16: {_W4A16}.",
            )
        return
    _check_cpu(folder, found, device, with_lora=with_lora)


def _check_cpu(folder: Path, found: Quantization, device: Device, *, with_lora: bool) -> None:
    """What was tried: bf16, GPTQ and w4a16 work with LoRA, 8-bit activations without, the rest does not."""
    if found.kind.startswith("w8a8") and "fp8" not in found.kind:
        if with_lora:
            raise _not_served(
                folder,
                f"it is {found.kind}, and vLLM serves no LoRA on it on {device.name}",
                f"Serve the base alone (GRAFT_INFERENCE_MAX_ADAPTERS=0), or make it w4a16: {_W4A16}.",
            )
        return
    if (found.kind, found.bits) == ("gptq", 4) or found.kind in ("w4a16", "awq"):
        return
    bits = f" of {found.bits} bits" if found.kind == "gptq" else ""
    raise _not_served(
        folder,
        f"it is {found.kind}{bits}, which vLLM serves on GPUs and not on {device.name}",
        f"Serve it on a GPU, unquantized, as 4-bit GPTQ, or as w4a16: {_W4A16}.",
    )


def _named(device: Device) -> set[str]:
    return {"gptq", "awq", "fp8", "compressed-tensors", _BNB} & set(device.methods)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except OSError as error:
        raise _not_a_model(folder, f"its config.json cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise _not_a_model(folder, f"its config.json is not JSON ({error})") from None
    if not isinstance(config, dict) or not config.get("architectures"):
        raise _not_a_model(folder, "its config.json names no architectures")
    return config


def _stored(folder: Path, found: object) -> Quantization:
    if not isinstance(found, dict):
        raise _not_a_model(folder, "quantization_config in its config.json is not an object")
    method = found.get("quant_method")
    if method is None and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        method = _BNB
    if not isinstance(method, str):
        raise _not_a_model(folder, "quantization_config in its config.json names no quant_method")
    if method == _BNB:
        if found.get("load_in_8bit"):
            return Quantization(method, "int8", 8)
        return Quantization(method, str(found.get("bnb_4bit_quant_type", "fp4")), 4)
    if method == "compressed-tensors":
        return _compressed(folder, found)
    bits = found.get("bits", 8 if "fp8" in method else 4)
    return Quantization(method, _SIMPLE.get(method, method), bits if isinstance(bits, int) else 16)


def _compressed(folder: Path, found: Mapping[str, Any]) -> Quantization:
    """Of its groups the one with the fewest bits of activations."""
    groups = found.get("config_groups")
    kinds = []
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = (group.get("weights") or {}) if isinstance(group, dict) else {}
        inputs = (group.get("input_activations") or {}) if isinstance(group, dict) else {}
        bits = weights.get("num_bits", 16)
        if isinstance(bits, int):
            kinds.append((inputs.get("num_bits") or 16, bits, weights.get("type") == "float"))
    if not kinds:
        raise _not_a_model(folder, "quantization_config in its config.json has no config_groups")
    activations, bits, is_float = min(kinds)
    kind = f"w{bits}a{activations}" + ("-fp8" if is_float and bits == 8 else "")
    return Quantization("compressed-tensors", kind, bits)


def _not_a_model(folder: Path, why: str) -> GraftError:
    return GraftError(
        Reason.NOT_A_MODEL,
        f"{folder} is not a base that can be served: {why}",
        next_step="Name a folder with config.json, a tokenizer and safetensors, or a base of the registry.",
        path=folder,
    )


def _not_served(folder: Path, why: str, next_step: str) -> GraftError:
    return GraftError(
        Reason.NOT_A_MODEL,
        f"{folder} cannot be served here: {why}",
        next_step=next_step,
        path=folder,
    )
