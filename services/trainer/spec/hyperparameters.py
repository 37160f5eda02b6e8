"""Numbers of the optimization."""

from __future__ import annotations

import math
from dataclasses import dataclass

from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.fields import choice, integer, invalid_field, number, positive

_SCHEDULES = ("linear", "cosine", "constant")
_PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_KERNELS = ("none", "liger")
_OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw_8bit")
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Numbers of the optimization. max_steps 0: epochs decide; warmup_steps 0: warmup_ratio decides."""

    epochs: float
    max_steps: int
    learning_rate: float
    micro_batch_size: int
    gradient_accumulation_steps: int
    max_length_tokens: int
    packing: bool
    schedule: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    gradient_checkpointing: bool
    optimizer: str
    report_every_steps: int
    group_by_length: bool = True
    warmup_steps: int = 0
    min_learning_rate: float = 0.0
    precision: str = "auto"
    neftune_alpha: float = 0.0
    torch_compile: bool = False
    kernels: str = "none"

    def warmup_of(self, steps: int) -> int:
        """Steps with a rising learning rate, of so many in all."""
        return self.warmup_steps or math.ceil(self.warmup_ratio * steps)


def parse_hyperparameters(
    given: pb.Hyperparameters, learning_rate: float, packing: bool
) -> Hyperparameters:
    """Checks the numbers.

    Args:
        learning_rate: the method's and objective's own.
        packing: the objective's own.

    Raises:
        GraftError: INVALID_SPEC.
    """
    path = "hyperparameters"
    _check_warmup(given)
    rate = positive(f"{path}.learning_rate", given.learning_rate, learning_rate, 10.0)
    return Hyperparameters(
        epochs=positive(f"{path}.epochs", given.epochs, 3.0, 100_000.0),
        max_steps=integer(f"{path}.max_steps", given.max_steps, 0, 0, 1000 * _MILLION),
        learning_rate=rate,
        micro_batch_size=integer(f"{path}.micro_batch_size", given.micro_batch_size, 8, 1, 65536),
        gradient_accumulation_steps=integer(
            f"{path}.gradient_accumulation_steps", given.gradient_accumulation_steps, 1, 1, 65536
        ),
        max_length_tokens=integer(
            f"{path}.max_length_tokens", given.max_length_tokens, 1024, 2, 16 * _MILLION
        ),
        packing=given.packing if given.HasField("packing") else packing,
        schedule=choice(f"{path}.schedule", given.schedule, _SCHEDULES),
        warmup_ratio=number(f"{path}.warmup_ratio", given.warmup_ratio, 0.0, 0.0, 1.0),
        weight_decay=number(f"{path}.weight_decay", given.weight_decay, 0.0, 0.0, 10.0),
        max_grad_norm=positive(f"{path}.max_grad_norm", given.max_grad_norm, 1.0, 1e9),
        gradient_checkpointing=given.gradient_checkpointing,
        optimizer=choice(f"{path}.optimizer", given.optimizer, _OPTIMIZERS),
        report_every_steps=integer(
            f"{path}.report_every_steps", given.report_every_steps, 1, 1, _MILLION
        ),
        group_by_length=not given.HasField("group_by_length") or given.group_by_length,
        warmup_steps=integer(f"{path}.warmup_steps", given.warmup_steps, 0, 0, 1000 * _MILLION),
        min_learning_rate=_min_learning_rate(given, rate),
        precision=choice(f"{path}.precision", given.precision, _PRECISIONS),
        neftune_alpha=number(f"{path}.neftune_alpha", given.neftune_alpha, 0.0, 0.0, 1000.0),
        torch_compile=given.torch_compile,
        kernels=choice(f"{path}.kernels", given.kernels, _KERNELS),
    )


def _check_warmup(given: pb.Hyperparameters) -> None:
    path = "hyperparameters.warmup_steps"
    if given.warmup_steps and given.warmup_ratio:
        raise invalid_field(
            path,
            given.warmup_steps,
            "left out where warmup_ratio is given",
            "Say how long the learning rate rises by one of warmup_steps and warmup_ratio.",
        )
    if 0 < given.max_steps < given.warmup_steps:
        raise invalid_field(path, given.warmup_steps, f"at most max_steps ({given.max_steps})")


def _min_learning_rate(given: pb.Hyperparameters, rate: float) -> float:
    path = "hyperparameters.min_learning_rate"
    least = number(path, given.min_learning_rate, 0.0, 0.0, 10.0)
    if least and given.schedule != "cosine":
        raise invalid_field(
            path,
            least,
            'left out but with schedule "cosine"',
            'Set hyperparameters.schedule to "cosine", or leave min_learning_rate out.',
        )
    if least >= rate:
        raise invalid_field(path, least, f"below the learning rate ({rate:g})")
    return least
