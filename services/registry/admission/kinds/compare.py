"""Holds the tensors that are there against those that must be."""

from __future__ import annotations

from collections.abc import Sequence

from services.registry.admission.header import Tensor
from services.registry.admission.kinds.base import Expected
from services.registry.admission.pairs import LAYERS, NAMES, PREFIX, SHAPES
from services.registry.errors import refused

_AGAIN = "Save the whole adapter again, with the configuration it was trained with."


def compare(tensors: Sequence[Tensor], expected: Expected) -> None:
    """Every tensor is expected, has the right shape, and none is missing.

    Raises:
        GraftError: VERSION_REFUSED, naming the tensor.
    """
    there = set()
    for tensor in tensors:
        name = _as_recorded(tensor.name, expected)
        there.add(name)
        wanted = expected.tensors.get(name)
        if wanted is None:
            raise refused(
                NAMES,
                f"tensor {tensor.name}: adapter_config.json and the base ask for no such tensor",
                "It was trained for another base or with another configuration: train it on this base.",
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
    for name in expected.tensors:
        if name not in there:
            raise refused(LAYERS, f"tensor {name}: it is missing", _AGAIN, tensor=name)


def _as_recorded(name: str, expected: Expected) -> str:
    """The name with the base's own paths: some checkpoints leave out the model's prefix ("transformer.h" is "h")."""
    path = name.removeprefix(PREFIX)
    shorter = f"{PREFIX}{path.partition('.')[2]}"
    return shorter if name not in expected.tensors and shorter in expected.tensors else name
