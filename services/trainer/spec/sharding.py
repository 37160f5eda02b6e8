"""What each of a job's processes holds of the model, and what cannot be shared so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graft.trainer.v1 import sharding_pb2 as pb

from services.trainer.fields import choice, integer, invalid_field, one_of
from services.trainer.methods import METHODS

if TYPE_CHECKING:
    from services.trainer.spec.job import JobSpec

_PATH = "resources.sharding"
_DTYPES = ("auto", "float32", "bfloat16")
# What moves or reads parameters beside the passes and the optimizer's step needs them whole.
_SHARED_METHODS = ("lora", "rslora", "lora_plus", "dora", "full")
# Every process must make as many forward passes as the others; sampled answers end when they end.
_ALONE_OBJECTIVES = ("grpo",)


@dataclass(frozen=True, slots=True)
class Sharding:
    """How processes share a model; the base class is every process holding everything.

    Nothing here is of use to one process alone.
    """

    kind: str = "replicated"

    @property
    def path(self) -> str:
        """Of the message's field in the spec."""
        return f"{_PATH}.{self.kind}"

    @property
    def shares_parameters(self) -> bool:
        """Whether no process holds them all."""
        return False


@dataclass(frozen=True, slots=True)
class Ddp(Sharding):
    """torch's DistributedDataParallel."""

    kind: str = "ddp"


@dataclass(frozen=True, slots=True)
class Fsdp(Sharding):
    """torch's fully_shard. compute_dtype is "auto" or a type's name."""

    kind: str = "fsdp"
    cpu_offload: bool = False
    reshard_after_forward: bool = True
    compute_dtype: str = "auto"

    @property
    def shares_parameters(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Zero(Sharding):
    """DeepSpeed's ZeRO."""

    kind: str = "zero"
    stage: int = 2
    offload_optimizer: bool = False
    offload_parameters: bool = False

    @property
    def shares_parameters(self) -> bool:
        return self.stage == 3


def parse_sharding(given: pb.Sharding) -> Sharding:
    """Fills in defaults and checks each field.

    Raises:
        GraftError: INVALID_SPEC.
    """
    kind = given.WhichOneof("kind") or "replicated"
    if kind == "ddp":
        return Ddp()
    if kind == "fsdp":
        fsdp = given.fsdp
        return Fsdp(
            cpu_offload=fsdp.cpu_offload,
            reshard_after_forward=not fsdp.HasField("reshard_after_forward")
            or fsdp.reshard_after_forward,
            compute_dtype=choice(f"{_PATH}.fsdp.compute_dtype", fsdp.compute_dtype, _DTYPES),
        )
    if kind == "zero":
        return _zero(given.zero)
    return Sharding()


def _zero(given: pb.Zero) -> Zero:
    stage = integer(f"{_PATH}.zero.stage", given.stage, 2, 1, 3)
    if given.offload_parameters and stage < 3:
        raise invalid_field(
            f"{_PATH}.zero.offload_parameters",
            True,
            f"left out with stage {stage}, in which every process holds all parameters",
            f"Set {_PATH}.zero.stage to 3, or leave it out.",
        )
    return Zero(
        stage=stage,
        offload_optimizer=given.offload_optimizer,
        offload_parameters=given.offload_parameters,
    )


def check_sharding(spec: JobSpec) -> None:
    """Checks that method, objective, base and optimizer go with how the model is shared.

    Raises:
        GraftError: INVALID_SPEC, naming the field, the reason and what works.
    """
    sharding, method = spec.resources.sharding, METHODS[spec.method.kind].info
    if sharding.kind == "replicated":
        return
    if spec.objective.kind in _ALONE_OBJECTIVES:
        raise _refused(
            sharding, f"left out with objective {spec.objective.kind}", "its answers are sampled"
        )
    if method.kind == "adalora":
        raise _refused(
            sharding,
            "left out with AdaLoRA",
            "its ranks are moved by gradients that each process holds whole",
        )
    if spec.hyperparameters.torch_compile:
        raise invalid_field(
            "hyperparameters.torch_compile",
            True,
            f"left out with {sharding.path}, which wraps the model in its own way",
            f"Leave it out, or leave {_PATH} out.",
        )
    if sharding.kind == "ddp":
        return
    if method.kind not in _SHARED_METHODS:
        works = one_of(_SHARED_METHODS)
        raise _refused(sharding, f"used with {works}", f"{method.title} reads its parameters whole")
    if spec.base.quantization != "none":
        raise _refused(
            sharding,
            "left out with a quantized base",
            "packed weights cannot be cut; they are small enough to be held whole",
        )
    if spec.hyperparameters.precision == "fp16":
        raise invalid_field(
            "hyperparameters.precision",
            "fp16",
            f"auto, bf16 or fp32 with {sharding.path}, whose gradients lie apart",
            "Leave hyperparameters.precision out.",
        )
    if spec.hyperparameters.optimizer != "adamw":
        raise invalid_field(
            "hyperparameters.optimizer",
            spec.hyperparameters.optimizer,
            f"adamw with {sharding.path}, which shares the optimizer's state already",
            "Leave hyperparameters.optimizer out, with cpu_offload or offload_optimizer where memory is short.",
        )


def _refused(sharding: Sharding, allowed: str, why: str) -> Exception:
    return invalid_field(
        _PATH,
        sharding.kind,
        f"{allowed}: {why}",
        f"Leave {_PATH} out: every process then holds everything, which works with all of them.",
    )
