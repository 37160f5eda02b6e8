"""The base model of a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from graft.errors import GraftError
from graft.names import default_base_id
from graft.trainer.v1 import job_spec_pb2 as pb

from services.trainer.fields import choice, identifier, invalid_field, one_of
from services.trainer.quantization import QUANTIZATIONS, Quantization

_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class BaseSpec:
    """The base model: a folder or a hub id, its name in the registry, and how it is held in memory.

    on_host: whether it is loaded into the machine's memory, from where it is cut into parts.
    """

    source: str
    name: str
    quantization: Quantization
    dtype: str
    double_quantization: bool = True
    on_host: bool = False


def parse_base(base: pb.BaseSpec, default_quantization: Quantization) -> BaseSpec:
    """Checks the base.

    Args:
        default_quantization: the method's, where the spec says nothing.

    Raises:
        GraftError: INVALID_SPEC.
    """
    if not base.source.strip():
        raise invalid_field("base.source", base.source, "a model's folder or a hub id")
    quantization = _quantization(base.quantization) or default_quantization
    if base.HasField("double_quantization") and quantization not in ("nf4", "fp4"):
        raise invalid_field(
            "base.double_quantization",
            base.double_quantization,
            f"left out, because base.quantization is {quantization}",
            "It is about the scales of 4-bit blocks: set base.quantization to nf4 or fp4, or leave it out.",
        )
    return BaseSpec(
        source=base.source,
        name=_name(base),
        quantization=quantization,
        dtype=choice("base.dtype", base.dtype, _DTYPES),
        double_quantization=not base.HasField("double_quantization") or base.double_quantization,
    )


def _quantization(value: int) -> Quantization | None:
    if value == pb.QUANTIZATION_UNSPECIFIED:
        return None
    if value not in pb.Quantization.values():
        raise invalid_field("base.quantization", value, one_of(QUANTIZATIONS))
    name = pb.Quantization.Name(pb.Quantization.ValueType(value))
    return cast(Quantization, name.removeprefix("QUANTIZATION_").lower())


def _name(base: pb.BaseSpec) -> str:
    if base.name:
        return identifier("base.name", base.name)
    try:
        return default_base_id(base.source)
    except GraftError:
        allowed = f"a name, because none can be made from {base.source!r}"
        raise invalid_field("base.name", "", allowed) from None
