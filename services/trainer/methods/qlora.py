"""QLoRA (Dettmers et al. 2023): LoRA on a base that is held in 4 or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from services.trainer.methods.base import MethodInfo, Use
from services.trainer.methods.lora import Lora, LoraConfig


@dataclass(frozen=True, slots=True)
class QLoraConfig(LoraConfig):
    """As LoRA's; how the base is held stands in base.quantization."""

    kind: ClassVar[str] = "qlora"


class QLora(Lora):
    """LoRA whose base is quantized unless the spec says otherwise."""

    info = MethodInfo(
        kind="qlora",
        title="QLoRA",
        source="Dettmers et al. 2023, arXiv:2305.14314",
        summary="LoRA on a frozen base in 4-bit NormalFloat; a quarter of the base's memory.",
        learning_rate=2e-4,
        learning_rate_source="as LoRA's: TRL's script for fine-tuning has 2e-4",
        uses=frozenset({Use.HOT_SWAP, Use.MERGE}),
        default_quantization="nf4",
    )
    config_type = QLoraConfig
