"""LoRA (Hu et al. 2021), through PEFT; its relatives build on this class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from services.trainer.fields import module_names, number, optional_integer, positive
from services.trainer.methods.base import Method, MethodConfig, MethodInfo, Use

MAX_RANK = 512
TARGET_WORDS = ("auto", "all-linear")


@dataclass(frozen=True, slots=True)
class LoraConfig(MethodConfig):
    """LoRA's settings. No target modules: all linear layers."""

    kind: ClassVar[str] = "lora"
    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]


class Lora(Method[LoraConfig]):
    """Low-rank updates of linear layers."""

    info = MethodInfo(
        kind="lora",
        title="LoRA",
        source="Hu et al. 2021, arXiv:2106.09685",
        summary="Adds a product of two narrow matrices to each targeted linear layer.",
        learning_rate=2e-4,
        learning_rate_source="TRL's script for fine-tuning with LoRA: 2e-4",
        uses=frozenset({Use.HOT_SWAP, Use.MERGE}),
    )

    config_type: ClassVar[type[LoraConfig]] = LoraConfig

    @classmethod
    def parse(cls, message: Any) -> LoraConfig:
        path = f"method.{cls.info.kind}"
        rank = optional_integer(message, "rank", f"{path}.rank", 16, 1, MAX_RANK)
        return cls.config_type(
            rank=rank,
            alpha=positive(f"{path}.alpha", message.alpha, 2.0 * rank, 65536.0),
            dropout=number(f"{path}.dropout", message.dropout, 0.0, 0.0, 0.99),
            target_modules=module_names(
                f"{path}.target_modules", message.target_modules, TARGET_WORDS
            ),
            **cls.further(message),
        )

    @classmethod
    def further(cls, message: Any) -> dict[str, Any]:
        """What a relative's settings have beside LoRA's."""
        return {}

    def peft_options(self) -> dict[str, Any]:
        """What PEFT's LoraConfig gets beside rank, alpha, dropout and targets."""
        return {}

    def apply(self, model: Any) -> Any:
        from services.trainer.run import peft_models, targets

        names = targets.choose_targets(model, self.config.target_modules, self.info.kind)
        targets.check_rank(model, names, self.config.rank, f"method.{self.info.kind}.rank")
        config = peft_models.lora_config(
            self.setting.task_type,
            r=self.config.rank,
            lora_alpha=self.config.alpha,
            lora_dropout=self.config.dropout,
            target_modules=names,
            fan_in_fan_out=targets.is_transposed(model, names),
            **self.peft_options(),
        )
        return peft_models.adapt(model, config, self.setting)

    def save(self, model: Any, folder: Path) -> None:
        from services.trainer.run import peft_models

        peft_models.save_adapter(model, folder)

    def checkpoint_files(self, model: Any) -> Mapping[str, Mapping[str, Any] | bytes]:
        from services.trainer.run import peft_models

        return peft_models.adapter_files(model)

    def load_checkpoint(self, model: Any, folder: Path) -> None:
        from services.trainer.run import peft_models

        peft_models.load_adapter(model, folder)
