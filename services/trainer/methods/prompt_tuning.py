"""Prompt tuning (Lester et al. 2021): learned embeddings before the input."""

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


@dataclass(frozen=True, slots=True)
class PromptTuningConfig(PromptConfig):
    """Prompt tuning's settings. initial_text "": embeddings of tokens drawn from the vocabulary."""

    kind: ClassVar[str] = "prompt_tuning"
    initial_text: str


class PromptTuning(PromptMethod[PromptTuningConfig]):
    """A soft prompt."""

    info = MethodInfo(
        kind="prompt_tuning",
        title="prompt tuning",
        source="Lester et al. 2021, arXiv:2104.08691",
        summary="Learns embeddings that come before the input.",
        learning_rate=3e-2,
        learning_rate_source="a tenth of Lester et al. 2021's 0.3, which is for Adafactor",
        uses=frozenset({Use.HOT_SWAP}),
        packing=False,
        packing_note=CANNOT_PACK,
    )

    @classmethod
    def parse(cls, message: pb.PromptTuning) -> PromptTuningConfig:
        path = "method.prompt_tuning.virtual_tokens"
        tokens = optional_integer(
            message, "virtual_tokens", path, USUAL_VIRTUAL_TOKENS, 1, MAX_VIRTUAL_TOKENS
        )
        return PromptTuningConfig(tokens, message.initial_text)

    def peft_config(self, model: Any) -> Any:
        from services.trainer.run import prompt_models

        config = self.config
        return prompt_models.prompt_tuning(self.setting, config.virtual_tokens, config.initial_text)
