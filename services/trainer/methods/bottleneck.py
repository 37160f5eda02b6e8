"""The bottleneck adapter (Houlsby et al. 2019): small residual networks after attention and MLP of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.fields import invalid_field, number, optional_integer
from services.trainer.methods.base import Method, MethodConfig, MethodInfo, Use

Activation = Literal["relu", "gelu", "silu"]
_ACTIVATIONS: dict[int, Activation] = {
    pb.ACTIVATION_UNSPECIFIED: "relu",
    pb.ACTIVATION_RELU: "relu",
    pb.ACTIVATION_GELU: "gelu",
    pb.ACTIVATION_SILU: "silu",
}


@dataclass(frozen=True, slots=True)
class BottleneckConfig(MethodConfig):
    """The bottleneck's width, inner function, places and dropout."""

    kind: ClassVar[str] = "bottleneck"
    size: int
    activation: Activation
    after_attention: bool
    after_mlp: bool
    dropout: float


class Bottleneck(Method[BottleneckConfig]):
    """Our own module: PEFT has none."""

    info = MethodInfo(
        kind="bottleneck",
        title="bottleneck adapter",
        source="Houlsby et al. 2019, arXiv:1902.00751",
        summary="Puts a narrow residual network after attention and after the MLP of every layer.",
        learning_rate=1e-4,
        learning_rate_source="ours: half of LoRA's, because whole layers are added and none is scaled down",
        uses=frozenset({Use.SECOND_ENGINE}),
        quantizations=frozenset(),
        quantization_note="the library's trainer takes only PEFT's adapters on one",
    )

    @classmethod
    def parse(cls, message: pb.Bottleneck) -> BottleneckConfig:
        path = "method.bottleneck"
        if message.activation not in _ACTIVATIONS:
            raise invalid_field(f"{path}.activation", message.activation, "relu, gelu or silu")
        attention = not message.HasField("after_attention") or message.after_attention
        mlp = not message.HasField("after_mlp") or message.after_mlp
        if not (attention or mlp):
            raise invalid_field(f"{path}.after_mlp", False, "true, or after_attention must be")
        return BottleneckConfig(
            size=optional_integer(message, "size", f"{path}.size", 64, 1, 65536),
            activation=_ACTIVATIONS[message.activation],
            after_attention=attention,
            after_mlp=mlp,
            dropout=number(f"{path}.dropout", message.dropout, 0.0, 0.0, 0.99),
        )

    def apply(self, model: Any) -> Any:
        from services.trainer.run import bottleneck

        return bottleneck.attach(model, self._shape(), trained=True)

    def save(self, model: Any, folder: Path) -> None:
        from services.trainer.run import bottleneck

        bottleneck.save(model, self._shape(), self.setting.base_name, folder)

    def checkpoint_files(self, model: Any) -> Mapping[str, Mapping[str, Any] | bytes]:
        from services.trainer.run import bottleneck

        return bottleneck.checkpoint_files(model)

    def load_checkpoint(self, model: Any, folder: Path) -> None:
        from services.trainer.run import bottleneck

        bottleneck.load_weights(model, folder)

    def parameters(self, model: Any) -> tuple[int, int]:
        counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
        return sum(n for n, trained in counts if trained), sum(n for n, _ in counts)

    def _shape(self) -> Any:
        from services.trainer.run.bottleneck import Shape

        config = self.config
        return Shape(
            config.size,
            config.activation,
            config.after_attention,
            config.after_mlp,
            config.dropout,
        )
