"""IA3 (Liu et al. 2022): learned scales of keys, values and the MLP's inner activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.fields import invalid_field, module_names
from services.trainer.methods.base import Method, MethodConfig, MethodInfo, Use


@dataclass(frozen=True, slots=True)
class Ia3Config(MethodConfig):
    """IA3's settings. No target modules: keys, values, and the MLP's last layer at its input."""

    kind: ClassVar[str] = "ia3"
    target_modules: tuple[str, ...]
    feedforward_modules: tuple[str, ...]


class Ia3(Method[Ia3Config]):
    """A vector of scales per targeted layer."""

    info = MethodInfo(
        kind="ia3",
        title="IA3",
        source="Liu et al. 2022, arXiv:2205.05638",
        summary="Learns a scale for each feature of keys, values and the MLP's inner activations.",
        learning_rate=3e-3,
        learning_rate_source="the authors' configuration (r-three/t-few): 3e-3",
        uses=frozenset({Use.HOT_SWAP, Use.MERGE}),
    )

    @classmethod
    def parse(cls, message: pb.Ia3) -> Ia3Config:
        targets = module_names("method.ia3.target_modules", message.target_modules)
        inner = module_names("method.ia3.feedforward_modules", message.feedforward_modules)
        for index, name in enumerate(inner):
            if name not in targets:
                path = f"method.ia3.feedforward_modules[{index}]"
                raise invalid_field(path, name, "one of method.ia3.target_modules")
        return Ia3Config(targets, inner)

    def apply(self, model: Any) -> Any:
        from services.trainer.run import ia3, peft_models

        config = ia3.peft_config(
            model, self.setting, self.config.target_modules, self.config.feedforward_modules
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
