"""PiSSA (Meng et al. 2024): LoRA that begins with the principal singular components of each weight.

What is trained changes the base as well, so the result is saved as the plain LoRA of twice the rank that does
to the unchanged base exactly what was learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.fields import integer, module_names, number, optional_integer, positive
from services.trainer.methods.base import MethodInfo, Setting, Use
from services.trainer.methods.lora import MAX_RANK, TARGET_WORDS, Lora, LoraConfig


@dataclass(frozen=True, slots=True)
class PissaConfig(LoraConfig):
    """LoRA's settings. svd_iterations 0: the exact decomposition."""

    kind: ClassVar[str] = "pissa"
    svd_iterations: int


class Pissa(Lora):
    """LoRA with another beginning. The result is a plain LoRA of twice the rank."""

    info = MethodInfo(
        kind="pissa",
        title="PiSSA",
        source="Meng et al. 2024, arXiv:2404.02948",
        summary="LoRA that begins with each weight's principal singular components, and freezes the rest.",
        learning_rate=2e-5,
        learning_rate_source="the authors' scripts (GraphPKU/PiSSA): 2e-5",
        uses=frozenset({Use.HOT_SWAP, Use.MERGE, Use.TO_LORA}),
        quantizations=frozenset(),
        quantization_note="its beginning is the decomposition of weights that are not quantized",
    )
    config_type = PissaConfig

    def __init__(self, config: LoraConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        self._beginning: dict[str, Any] = {}

    @classmethod
    def parse(cls, message: pb.Pissa) -> PissaConfig:
        rank = optional_integer(message, "rank", "method.pissa.rank", 16, 1, MAX_RANK // 2)
        return PissaConfig(
            rank=rank,
            alpha=positive("method.pissa.alpha", message.alpha, float(rank), 65536.0),
            dropout=number("method.pissa.dropout", message.dropout, 0.0, 0.0, 0.99),
            target_modules=module_names(
                "method.pissa.target_modules", message.target_modules, TARGET_WORDS
            ),
            svd_iterations=integer(
                "method.pissa.svd_iterations", message.svd_iterations, 0, 0, 1000
            ),
        )

    def peft_options(self) -> dict[str, Any]:
        assert isinstance(self.config, PissaConfig)
        iterations = self.config.svd_iterations
        return {"init_lora_weights": f"pissa_niter_{iterations}" if iterations else "pissa"}

    def apply(self, model: Any) -> Any:
        from services.trainer.run import pissa

        adapted = super().apply(model)
        self._beginning = pissa.beginning(adapted)
        return adapted

    def save(self, model: Any, folder: Path) -> None:
        from services.trainer.run import pissa

        pissa.save_as_lora(model, self._beginning, folder)

    def checkpoint_files(self, model: Any) -> Mapping[str, Mapping[str, Any] | bytes]:
        from services.trainer.run import pissa

        return {**super().checkpoint_files(model), pissa.BEGINNING: self._beginning}

    def load_checkpoint(self, model: Any, folder: Path) -> None:
        from services.trainer.run import pissa

        super().load_checkpoint(model, folder)
        # Another machine's decomposition may differ in the last bits.
        self._beginning = pissa.load_beginning(model, self._beginning, folder)
