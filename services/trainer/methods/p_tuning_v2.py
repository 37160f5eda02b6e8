"""P-tuning v2 (Liu et al. 2021): learned keys and values in every layer, stored as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.fields import optional_integer
from services.trainer.methods.base import MethodInfo, Use
from services.trainer.methods.prompts import (
    CANNOT_PACK,
    MAX_VIRTUAL_TOKENS,
    USUAL_VIRTUAL_TOKENS,
    PromptConfig,
    PromptMethod,
)

CANNOT_CHECKPOINT = (
    "PEFT refuses it, because keys and values given from outside are lost in recomputation"
)


@dataclass(frozen=True, slots=True)
class PTuningV2Config(PromptConfig):
    """P-tuning v2's settings."""

    kind: ClassVar[str] = "p_tuning_v2"


class PTuningV2(PromptMethod[PTuningV2Config]):
    """Prefix tuning without a network."""

    info = MethodInfo(
        kind="p_tuning_v2",
        title="P-tuning v2",
        source="Liu et al. 2021, arXiv:2110.07602",
        summary="Learns keys and values that come before the input's in every layer.",
        learning_rate=1e-2,
        learning_rate_source="near the authors' scripts (THUDM/P-tuning-v2), for example 7e-3 and 9e-3",
        uses=frozenset({Use.SECOND_ENGINE}),
        packing=False,
        packing_note=CANNOT_PACK,
        gradient_checkpointing=False,
        checkpointing_note=CANNOT_CHECKPOINT,
    )

    @classmethod
    def parse(cls, message: pb.PTuningV2) -> PTuningV2Config:
        path = "method.p_tuning_v2.virtual_tokens"
        return PTuningV2Config(
            optional_integer(
                message, "virtual_tokens", path, USUAL_VIRTUAL_TOKENS, 1, MAX_VIRTUAL_TOKENS
            )
        )

    def peft_config(self, model: Any) -> Any:
        from services.trainer.run import prompt_models

        return prompt_models.prefix_tuning(self.setting, self.config.virtual_tokens)
