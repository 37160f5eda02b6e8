"""Holds the tensors that are there against those that must be."""

from __future__ import annotations

from collections.abc import Sequence

from services.registry.admission.header import Tensor
from services.registry.admission.kinds.base import Expected
from services.registry.admission.pairs import LAYERS, NAMES, PREFIX, SHAPES
from services.registry.errors import refused

_AGAIN = "Save the whole adapter again, with the configuration it was trained with."
_OTHER = "It was trained for another base or with another configuration: train it on this base."


def compare(tensors: Sequence[Tensor], expected: Expected) -> None:
    """Every tensor is expected, has the right shape, and none is missing.

    Raises:
        GraftError: VERSION_REFUSED, naming the tensor.
    """
    prefix = PREFIX + _model_prefix(tensors, expected)
    there: set[str] = set()
    for tensor in tensors:
        name = _as_recorded(tensor.name, prefix)
        wanted = expected.tensors.get(name)
        if wanted is None:
            raise refused(
                NAMES,
                f"tensor {tensor.name}: adapter_config.json and the base ask for no such tensor",
                _OTHER,
                tensor=tensor.name,
            )
        if tuple(tensor.shape) != wanted:
            raise refused(
                SHAPES,
                f"tensor {tensor.name}: its shape is {list(tensor.shape)}, and configuration and base ask "
                f"for {list(wanted)}",
                _AGAIN,
                tensor=tensor.name,
            )
        there.add(name)
    for name in expected.tensors:
        if name not in there:
            missing = prefix + name.removeprefix(PREFIX) if name.startswith(PREFIX) else name
            raise refused(LAYERS, f"tensor {missing}: it is missing", _AGAIN, tensor=missing)


def _model_prefix(tensors: Sequence[Tensor], expected: Expected) -> str:
    """What all tensors' paths begin with and the base's do not: the base has "h.0" for "transformer.h.0"."""
    path = tensors[0].name.removeprefix(PREFIX)
    head, dot, rest = path.partition(".")
    known = PREFIX + path in expected.tensors
    return head + dot if not known and PREFIX + rest in expected.tensors else ""


def _as_recorded(name: str, prefix: str) -> str:
    """The name as it is expected; one without the prefix that the first has is not."""
    if prefix == PREFIX or not name.startswith(PREFIX):
        return name
    return PREFIX + name.removeprefix(prefix) if name.startswith(prefix) else ""
