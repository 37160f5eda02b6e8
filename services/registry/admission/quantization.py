"""How a base is quantized, by its config.json, in the contract's words: "none", "nf4", "gptq" ..."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.registry.errors import refused

CHECK = "quantization"
_METHODS = {
    "gptq": "gptq",
    "awq": "awq",
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "mxfp4": "mxfp4",
    "compressed-tensors": "compressed-tensors",
}
_FOUR_BITS = ("nf4", "fp4")


def quantization_of(config: Mapping[str, Any]) -> str:
    """Of what config.json says.

    Raises:
        GraftError: VERSION_REFUSED for a method that is not known, or said contradictorily.
    """
    found = config.get("quantization_config")
    if found is None:
        return "none"
    if not isinstance(found, dict):
        raise _refused("quantization_config is not an object")
    method = found.get("quant_method")
    if method is None and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        method = "bitsandbytes"
    if method == "bitsandbytes":
        return _bitsandbytes(found)
    if not isinstance(method, str) or method not in _METHODS:
        raise _refused(f"quant_method is {ascii(method)[:80]}, which is not known")
    return _METHODS[method]


def _bitsandbytes(found: Mapping[str, Any]) -> str:
    in_4bit, in_8bit = found.get("load_in_4bit") is True, found.get("load_in_8bit") is True
    if in_4bit == in_8bit:
        raise _refused("bitsandbytes is to load in 4 bits or in 8, one of them")
    if in_8bit:
        return "int8"
    kind = found.get("bnb_4bit_quant_type", "fp4")
    if kind not in _FOUR_BITS:
        raise _refused(f"bnb_4bit_quant_type is {ascii(kind)[:80]}")
    return str(kind)


def _refused(message: str) -> Exception:
    known = ", ".join(["bitsandbytes (nf4, fp4, int8)", *_METHODS])
    return refused(
        CHECK,
        f"config.json: {message}",
        f"Quantize with one of: {known}; or commit it unquantized.",
        path="config.json",
    )
