"""AdaLoRA (Zhang et al. 2023): LoRA as a singular value decomposition, whose ranks move to where they matter.

The result is saved as the plain LoRA that is equal to it, so that it can be served by swapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.fields import invalid_field, module_names, number, optional_integer, positive
from services.trainer.methods.base import Method, MethodConfig, MethodInfo, Use
from services.trainer.methods.lora import MAX_RANK, TARGET_WORDS


@dataclass(frozen=True, slots=True)
class AdaLoraConfig(MethodConfig):
    """AdaLoRA's settings: ranks, and the fractions of the run before and after they are reduced."""

    kind: ClassVar[str] = "adalora"
    target_rank: int
    initial_rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]
    warmup_ratio: float
    final_ratio: float
    orthogonality_weight: float


class AdaLora(Method[AdaLoraConfig]):
    """Low-rank updates with a budget of ranks."""

    info = MethodInfo(
        kind="adalora",
        title="AdaLoRA",
        source="Zhang et al. 2023, arXiv:2303.10512",
        summary="LoRA that takes rank from modules where it matters little, while it trains.",
        learning_rate=1e-3,
        learning_rate_source="ours: near the authors' examples (QingruZhang/AdaLoRA), which have 5e-4 and more",
        uses=frozenset({Use.HOT_SWAP, Use.MERGE, Use.TO_LORA}),
    )

    @classmethod
    def parse(cls, message: pb.AdaLora) -> AdaLoraConfig:
        path = "method.adalora"
        target = optional_integer(message, "target_rank", f"{path}.target_rank", 8, 1, MAX_RANK - 1)
        usual = min(MAX_RANK, max(target + 1, round(1.5 * target)))
        initial = optional_integer(
            message, "initial_rank", f"{path}.initial_rank", usual, 1, MAX_RANK
        )
        if initial <= target:
            allowed = f"above target_rank, which is {target}: ranks are reduced to that"
            raise invalid_field(f"{path}.initial_rank", initial, allowed)
        warmup = number(f"{path}.warmup_ratio", message.warmup_ratio, 0.1, 0.0, 0.9)
        return AdaLoraConfig(
            target_rank=target,
            initial_rank=initial,
            alpha=positive(f"{path}.alpha", message.alpha, 2.0 * target, 65536.0),
            dropout=number(f"{path}.dropout", message.dropout, 0.0, 0.0, 0.99),
            target_modules=module_names(
                f"{path}.target_modules", message.target_modules, TARGET_WORDS
            ),
            warmup_ratio=warmup,
            final_ratio=number(
                f"{path}.final_ratio",
                message.final_ratio,
                min(0.3, 0.9 - warmup),
                0.0,
                0.95 - warmup,
            ),
            orthogonality_weight=number(
                f"{path}.orthogonality_weight", message.orthogonality_weight, 0.5, 0.0, 1000.0
            ),
        )

    def apply(self, model: Any) -> Any:
        from services.trainer.run import adalora, peft_models, targets

        names = targets.choose_targets(model, self.config.target_modules, self.info.kind)
        targets.check_rank(model, names, self.config.initial_rank, "method.adalora.initial_rank")
        transposed = targets.is_transposed(model, names)
        config = adalora.peft_config(self.config, self.setting, names, transposed)
        return peft_models.adapt(model, config, self.setting)

    def save(self, model: Any, folder: Path) -> None:
        from services.trainer.run import adalora

        adalora.save_as_lora(model, folder)

    def checkpoint_files(self, model: Any) -> Mapping[str, Mapping[str, Any] | bytes]:
        from services.trainer.run import adalora

        return adalora.checkpoint_files(model)

    def load_checkpoint(self, model: Any, folder: Path) -> None:
        from services.trainer.run import adalora

        adalora.load_state(model, folder)

    def after_step(self, model: Any, step: int) -> None:
        # Nothing else calls it: Trainer does not know of ranks.
        model.base_model.update_and_allocate(step)

    def extra_loss(self, model: Any) -> Any:
        from services.trainer.run import adalora

        return self.config.orthogonality_weight * adalora.orthogonality(model)
