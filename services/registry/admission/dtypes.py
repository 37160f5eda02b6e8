"""The number formats of safetensors: how wide they are and how their largest value is found by bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# In bits: two F4 share a byte, four F6 three.
DTYPE_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64,
    "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
ADAPTER_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Float:
    """A float format as words: from not_finite on, a word without its sign is infinite or NaN."""

    width_bytes: int
    not_finite: int

    @property
    def magnitude(self) -> int:
        """All bits but the sign's."""
        return (1 << (8 * self.width_bytes - 1)) - 1

    @property
    def unsigned(self) -> np.dtype[Any]:
        """As whole numbers from 0 on."""
        return np.dtype(f"<u{self.width_bytes}")

    @property
    def signed(self) -> np.dtype[Any]:
        """As whole numbers whose first bit is their sign."""
        return np.dtype(f"<i{self.width_bytes}")


# IEEE 754 binary64, 32 and 16; bfloat16 likewise; FP8 after Micikevicius et al., arXiv:2209.05433.
FLOATS = {
    "F64": Float(8, 0x7FF0_0000_0000_0000),
    "F32": Float(4, 0x7F80_0000),
    "F16": Float(2, 0x7C00),
    "BF16": Float(2, 0x7F80),
    "F8_E5M2": Float(1, 0x7C),
    "F8_E4M3": Float(1, 0x7F),
}


def value_of(dtype: str, word: int) -> float:
    """The number that a word without its sign stands for."""
    match dtype:
        case "F64":
            return float(np.uint64(word).view(np.float64))
        case "F32":
            return float(np.uint32(word).view(np.float32))
        case "BF16":
            return float(np.uint32(word << 16).view(np.float32))
        case "F16":
            return float(np.uint16(word).view(np.float16))
        case "F8_E5M2":
            return float(np.uint16(word << 8).view(np.float16))
        case _:
            exponent, fraction = word >> 3, word & 7
            return float(
                (8 + fraction) * 2.0 ** (exponent - 10) if exponent else fraction * 2.0**-9
            )
