"""LoRA+ (Hayou et al. 2024): LoRA whose B learns faster than its A."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.fields import invalid_field, positive
from services.trainer.methods.base import MethodInfo, Use
from services.trainer.methods.lora import Lora, LoraConfig


@dataclass(frozen=True, slots=True)
class LoraPlusConfig(LoraConfig):
    """LoRA's settings, and the learning rate of B over that of A."""

    kind: ClassVar[str] = "lora_plus"
    learning_rate_ratio: float


class LoraPlus(Lora):
    """LoRA with two learning rates. The result is a plain LoRA."""

    info = MethodInfo(
        kind="lora_plus",
        title="LoRA+",
        source="Hayou et al. 2024, arXiv:2402.12354",
        summary="LoRA with a higher learning rate for B than for A.",
        learning_rate=1e-4,
        learning_rate_source="ours: half of LoRA's, because B learns 16 times as fast as that",
        uses=frozenset({Use.HOT_SWAP, Use.MERGE}),
    )
    config_type = LoraPlusConfig

    @classmethod
    def further(cls, message: pb.LoraPlus) -> dict[str, Any]:
        ratio = positive(
            "method.lora_plus.learning_rate_ratio", message.learning_rate_ratio, 16.0, 1000.0
        )
        if ratio < 1.0:
            raise invalid_field(
                "method.lora_plus.learning_rate_ratio", ratio, "1 to 1000: B learns faster than A"
            )
        return {"learning_rate_ratio": ratio}

    def optimizer(self, model: Any, optimizer_class: Any, arguments: dict[str, Any]) -> Any:
        from peft.optimizers import create_loraplus_optimizer

        assert isinstance(self.config, LoraPlusConfig)
        rest = dict(arguments)
        return create_loraplus_optimizer(
            model,
            optimizer_class,
            lr=rest.pop("lr"),
            loraplus_lr_ratio=self.config.learning_rate_ratio,
            loraplus_weight_decay=rest.pop("weight_decay", 0.0),
            **rest,
        )
