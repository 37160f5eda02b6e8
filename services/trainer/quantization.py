"""How a frozen base may be held in memory."""

from __future__ import annotations

from typing import Literal

Quantization = Literal["none", "nf4", "fp4", "int8"]
QUANTIZATIONS: tuple[Quantization, ...] = ("none", "nf4", "fp4", "int8")
