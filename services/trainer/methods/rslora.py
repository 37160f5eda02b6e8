"""rsLoRA (Kalajdzievski 2023): LoRA scaled by alpha over the rank's square root, so that high ranks learn as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from services.trainer.methods.base import MethodInfo, Use
from services.trainer.methods.lora import Lora, LoraConfig


@dataclass(frozen=True, slots=True)
class RsLoraConfig(LoraConfig):
    """As LoRA's."""

    kind: ClassVar[str] = "rslora"


class RsLora(Lora):
    """LoRA with another scale."""

    info = MethodInfo(
        kind="rslora",
        title="rsLoRA",
        source="Kalajdzievski 2023, arXiv:2312.03732",
        summary="LoRA whose update is scaled by alpha / sqrt(rank), so that high ranks do not learn less.",
        learning_rate=1e-4,
        learning_rate_source="ours: half of LoRA's, because at rank 16 the scale is four times LoRA's",
        uses=frozenset({Use.HOT_SWAP, Use.MERGE, Use.TO_LORA}),
    )
    config_type = RsLoraConfig

    def peft_options(self) -> dict[str, Any]:
        return {"use_rslora": True}
