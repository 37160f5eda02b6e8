"""P-tuning v1 (Liu et al. 2021): embeddings before the input that come out of a small network, an MLP or an LSTM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.fields import integer, invalid_field, number, optional_integer
from services.trainer.methods.base import MethodInfo, Use
from services.trainer.methods.prompts import (
    CANNOT_PACK,
    MAX_VIRTUAL_TOKENS,
    USUAL_VIRTUAL_TOKENS,
    PromptConfig,
    PromptMethod,
)

Encoder = Literal["MLP", "LSTM"]
_ENCODERS: dict[int, Encoder] = {
    pb.PROMPT_ENCODER_UNSPECIFIED: "MLP",
    pb.PROMPT_ENCODER_MLP: "MLP",
    pb.PROMPT_ENCODER_LSTM: "LSTM",
}


@dataclass(frozen=True, slots=True)
class PTuningConfig(PromptConfig):
    """P-tuning's settings. encoder_hidden_size 0: the base's hidden size."""

    kind: ClassVar[str] = "p_tuning"
    encoder: Encoder
    encoder_hidden_size: int
    encoder_layers: int
    dropout: float


class PTuning(PromptMethod[PTuningConfig]):
    """A soft prompt through an encoder, which the result does not need any more."""

    info = MethodInfo(
        kind="p_tuning",
        title="P-tuning v1",
        source="Liu et al. 2021, arXiv:2103.10385",
        summary="Learns embeddings before the input as the output of an MLP or an LSTM.",
        learning_rate=1e-3,
        learning_rate_source="PEFT's example of P-tuning: 1e-3",
        uses=frozenset({Use.HOT_SWAP}),
        packing=False,
        packing_note=CANNOT_PACK,
    )

    @classmethod
    def parse(cls, message: pb.PTuning) -> PTuningConfig:
        path = "method.p_tuning"
        if message.encoder not in _ENCODERS:
            raise invalid_field(f"{path}.encoder", message.encoder, "mlp or lstm")
        return PTuningConfig(
            virtual_tokens=optional_integer(
                message,
                "virtual_tokens",
                f"{path}.virtual_tokens",
                USUAL_VIRTUAL_TOKENS,
                1,
                MAX_VIRTUAL_TOKENS,
            ),
            encoder=_ENCODERS[message.encoder],
            encoder_hidden_size=integer(
                f"{path}.encoder_hidden_size", message.encoder_hidden_size, 0, 0, 65536
            ),
            encoder_layers=integer(f"{path}.encoder_layers", message.encoder_layers, 2, 1, 16),
            dropout=number(f"{path}.dropout", message.dropout, 0.0, 0.0, 0.99),
        )

    def peft_config(self, model: Any) -> Any:
        from services.trainer.run import prompt_models

        config = self.config
        return prompt_models.p_tuning(
            model,
            self.setting,
            config.virtual_tokens,
            config.encoder,
            config.encoder_hidden_size,
            config.encoder_layers,
            config.dropout,
        )
