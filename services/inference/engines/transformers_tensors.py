"""Tensors of an adapter's file, taken one by one: whatever does not fit the base is named."""

from __future__ import annotations

import torch
from torch import Tensor

PREFIX = "base_model.model."


class UnfitError(Exception):
    """Why an adapter cannot be computed, naming the tensor or the field."""


def take(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of that shape, which is not among the others then.

    Raises:
        UnfitError: where there is none, or one of another shape.
    """
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise UnfitError(f"tensor {name}: it is missing")
    if tuple(tensor.shape) != shape:
        raise UnfitError(
            f"tensor {name}: its shape is {list(tensor.shape)}, and the base asks for {list(shape)}"
        )
    return tensor


def check_finite(name: str, tensor: Tensor) -> None:
    """Checks that every number is one.

    Raises:
        UnfitError: naming the tensor.
    """
    if not torch.isfinite(tensor).all():
        raise UnfitError(f"tensor {name}: it holds NaN or infinite numbers, or ones too large")
