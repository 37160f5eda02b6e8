"""DoRA (Liu et al. 2024): LoRA for the direction of each weight column, and its magnitude learned apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from services.trainer.methods.base import MethodInfo, Use
from services.trainer.methods.lora import Lora, LoraConfig


@dataclass(frozen=True, slots=True)
class DoraConfig(LoraConfig):
    """As LoRA's."""

    kind: ClassVar[str] = "dora"


class Dora(Lora):
    """LoRA with magnitudes."""

    info = MethodInfo(
        kind="dora",
        title="DoRA",
        source="Liu et al. 2024, arXiv:2402.09353",
        summary="LoRA changes the direction of the weights, and a vector per layer their magnitude.",
        learning_rate=2e-4,
        learning_rate_source="the authors' script for Llama-2-7B (NVlabs/DoRA): 2e-4",
        uses=frozenset({Use.HOT_SWAP, Use.MERGE}),
        quantizations=frozenset({"nf4", "fp4"}),
        quantization_note="its magnitudes need norms of the weights, which bitsandbytes does not keep for 8 bits",
    )
    config_type = DoraConfig

    def peft_options(self) -> dict[str, Any]:
        return {"use_dora": True}
