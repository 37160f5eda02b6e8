"""Puts whole tensors in the place of a model's shared parameters for a while, so that whoever saves it sees nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Parameter = torch.nn.Parameter
Slot = tuple[torch.nn.Module, str]


def slots(model: torch.nn.Module) -> Iterator[tuple[Parameter, list[Slot]]]:
    """Each parameter once, with every place of the model that it stands in: tied ones have several."""
    found: dict[Parameter, list[Slot]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(parameter, []).append((module, name))
    yield from found.items()


@contextmanager
def swapped(
    model: torch.nn.Module,
    wanted: Callable[[Parameter], bool],
    whole: Callable[[Parameter], torch.Tensor],
    keep: bool,
) -> Iterator[dict[Parameter, Parameter]]:
    """While inside, wanted parameters are whole ones in the machine's memory; yields those by the shared ones.

    Args:
        wanted: which parameters.
        whole: gathers one; called by every process in the same order.
        keep: whether this process keeps them; others only take part.
    """
    made: dict[Parameter, Parameter] = {}
    places = list(slots(model))
    try:
        for shared, where in places:
            if not wanted(shared):
                continue
            tensor = whole(shared)
            if keep:
                made[shared] = Parameter(tensor, requires_grad=shared.requires_grad)
                _put(where, made[shared])
        yield made
    finally:
        for shared, where in places:
            if shared in made:
                _put(where, shared)


def _put(where: list[Slot], parameter: Parameter) -> None:
    for module, name in where:
        module._parameters[name] = parameter


@contextmanager
def swapped_state(
    optimizer: Any, whole: Callable[[torch.Tensor], torch.Tensor | None], keep: bool
) -> Iterator[None]:
    """While inside, an optimizer's state holds whole tensors.

    Args:
        optimizer: torch's; None for none.
        whole: gathers one; None for one that is whole.
        keep: whether this process keeps them.
    """
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for state in optimizer.state.values() if optimizer is not None else ():
            for name, value in list(state.items()):
                tensor = whole(value) if isinstance(value, torch.Tensor) else None
                if tensor is not None and keep:
                    before.append((state, name, value))
                    state[name] = tensor
        yield
    finally:
        for state, name, value in before:
            state[name] = value
