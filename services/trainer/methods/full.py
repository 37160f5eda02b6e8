"""Full fine-tuning: every number of the base is trained, and the result is a version of a base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.fields import module_names
from services.trainer.methods.base import Method, MethodConfig, MethodInfo, Use


@dataclass(frozen=True, slots=True)
class FullConfig(MethodConfig):
    """Full fine-tuning's settings."""

    kind: ClassVar[str] = "full"
    frozen_modules: tuple[str, ...]


class Full(Method[FullConfig]):
    """All parameters, but those of modules that stay frozen."""

    info = MethodInfo(
        kind="full",
        title="full fine-tuning",
        source="Howard and Ruder 2018, arXiv:1801.06146",
        summary="Trains every number of the base.",
        learning_rate=2e-5,
        learning_rate_source="TRL's script for fine-tuning all parameters: 2e-5",
        uses=frozenset({Use.BASE}),
        quantizations=frozenset(),
        quantization_note="numbers of 4 or 8 bits have no gradients",
        makes_base=True,
    )

    @classmethod
    def parse(cls, message: pb.Full) -> FullConfig:
        return FullConfig(module_names("method.full.frozen_modules", message.frozen_modules))

    def apply(self, model: Any) -> Any:
        from services.trainer.run import whole_models

        return whole_models.unfreeze(model, self.config.frozen_modules)

    def save(self, model: Any, folder: Path) -> None:
        from services.trainer.run import whole_models

        whole_models.save(model, self.setting.base_folder, folder)

    def checkpoint_files(self, model: Any) -> Mapping[str, Mapping[str, Any] | bytes]:
        from services.trainer.run import whole_models

        return whole_models.checkpoint_files(model)

    def load_checkpoint(self, model: Any, folder: Path) -> None:
        from services.trainer.run import whole_models

        whole_models.load_weights(model, folder)

    def parameters(self, model: Any) -> tuple[int, int]:
        counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
        return sum(n for n, trained in counts if trained), sum(n for n, _ in counts)

    def result_files(self, folder: Path) -> Sequence[str]:
        return sorted(path.name for path in folder.iterdir() if path.is_file())
