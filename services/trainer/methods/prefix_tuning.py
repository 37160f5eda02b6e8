"""Prefix tuning (Li and Liang 2021): learned keys and values in every layer, out of an MLP while they are learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.fields import integer, optional_integer
from services.trainer.methods.base import MethodInfo, Use
from services.trainer.methods.p_tuning_v2 import CANNOT_CHECKPOINT
from services.trainer.methods.prompts import (
    CANNOT_PACK,
    MAX_VIRTUAL_TOKENS,
    USUAL_VIRTUAL_TOKENS,
    PromptConfig,
    PromptMethod,
)


@dataclass(frozen=True, slots=True)
class PrefixTuningConfig(PromptConfig):
    """Prefix tuning's settings. encoder_hidden_size 0: the base's hidden size."""

    kind: ClassVar[str] = "prefix_tuning"
    encoder_hidden_size: int


class PrefixTuning(PromptMethod[PrefixTuningConfig]):
    """Prefixes with reparameterization; the result holds the prefixes alone."""

    info = MethodInfo(
        kind="prefix_tuning",
        title="prefix tuning",
        source="Li and Liang 2021, arXiv:2101.00190",
        summary="Learns keys and values before the input's in every layer, as the output of an MLP.",
        learning_rate=1e-3,
        learning_rate_source="ours: a tenth of P-tuning v2's, because an MLP stands before the keys and values",
        uses=frozenset({Use.SECOND_ENGINE}),
        packing=False,
        packing_note=CANNOT_PACK,
        gradient_checkpointing=False,
        checkpointing_note=CANNOT_CHECKPOINT,
    )

    @classmethod
    def parse(cls, message: pb.PrefixTuning) -> PrefixTuningConfig:
        path = "method.prefix_tuning"
        return PrefixTuningConfig(
            virtual_tokens=optional_integer(
                message,
                "virtual_tokens",
                f"{path}.virtual_tokens",
                USUAL_VIRTUAL_TOKENS,
                1,
                MAX_VIRTUAL_TOKENS,
            ),
            encoder_hidden_size=integer(
                f"{path}.encoder_hidden_size", message.encoder_hidden_size, 0, 0, 65536
            ),
        )

    def peft_config(self, model: Any) -> Any:
        from services.trainer.run import prompt_models

        config = self.config
        return prompt_models.prefix_tuning(
            self.setting,
            config.virtual_tokens,
            config.encoder_hidden_size or model.config.get_text_config().hidden_size,
        )
