"""Which layers of a model are adapted: what "auto" and "all-linear" mean for it, and whether a rank fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from graft.errors import GraftError, Reason
from transformers.pytorch_utils import Conv1D

AUTO, ALL_LINEAR = "auto", "all-linear"
_ATTENTION = ("attn", "attention")


def choose_targets(model: Any, wanted: Sequence[str], kind: str) -> list[str]:
    """The names of the modules to adapt: those wanted, attention's projections, or all linear layers.

    Args:
        model: not adapted yet.
        wanted: names, or one of the words "auto" and "all-linear"; nothing is the latter.
        kind: the method, for the error's field.

    Raises:
        GraftError: INVALID_SPEC, naming those that the model does not have, and those that it has.
    """
    if not wanted or tuple(wanted) == (ALL_LINEAR,):
        names = linear_names(model)
    elif tuple(wanted) == (AUTO,):
        names = attention_names(model)
    else:
        check_targets(model, wanted, kind)
        names = list(wanted)
    if not names:
        raise GraftError(
            Reason.INVALID_SPEC,
            f"A {model.config.model_type} has no layers that {' '.join(wanted) or ALL_LINEAR} could mean",
            next_step=f"Name some of {', '.join(linear_names(model)) or 'its modules'} instead.",
            field=f"method.{kind}.target_modules",
        )
    return names


def linear_names(model: Any) -> list[str]:
    """The names of the model's linear layers that can be adapted, no heads among them."""
    return sorted({path.rsplit(".", 1)[-1] for path in linear_layers(model)})


def attention_names(model: Any) -> list[str]:
    """The names of attention's projections; with their parent's name, where others are called the same."""
    layers = linear_layers(model)
    inside = [path for path in layers if _is_attention(path)]
    elsewhere = {path.rsplit(".", 1)[-1] for path in layers if not _is_attention(path)}
    names = set()
    for path in inside:
        parent, name = path.split(".")[-2:]
        names.add(f"{parent}.{name}" if name in elsewhere else name)
    return sorted(names)


def _is_attention(path: str) -> bool:
    parents = path.lower().split(".")[:-1]
    return any(word in parent for parent in parents for word in _ATTENTION)


def check_targets(model: Any, targets: Sequence[str], kind: str) -> None:
    """Checks that each target names a linear layer of the model that can be adapted.

    Raises:
        GraftError: INVALID_SPEC, naming the targets that do not, and those that there are.
    """
    paths = linear_layers(model)
    unknown = [target for target in targets if not any(_named(path, target) for path in paths)]
    if unknown:
        raise GraftError(
            Reason.INVALID_SPEC,
            f"The base has no linear layer named {', '.join(unknown)} that can be adapted",
            next_step=f"Use some of {', '.join(linear_names(model))}, or leave target_modules out for all.",
            field=f"method.{kind}.target_modules",
        )


def check_rank(model: Any, targets: Sequence[str], rank: int, field: str) -> None:
    """Checks that no targeted layer is narrower than the rank.

    Raises:
        GraftError: INVALID_SPEC, naming the narrowest layer and its size.
    """
    sizes = {
        path: (layer_in, layer_out)
        for path, (layer_in, layer_out) in linear_layers(model).items()
        if any(_named(path, target) for target in targets)
    }
    narrowest = min(sizes, key=lambda path: min(sizes[path]))
    most = min(sizes[narrowest])
    if rank > most:
        layer_in, layer_out = sizes[narrowest]
        raise GraftError(
            Reason.INVALID_SPEC,
            f"{field} is {rank}, and {narrowest} has {layer_in} inputs and {layer_out} outputs: "
            f"no update of it has a rank above {most}",
            next_step=f"Use a rank of at most {most}, or leave {narrowest.rsplit('.', 1)[-1]} "
            "out of target_modules.",
            field=field,
        )


def linear_layers(model: Any) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each linear layer that can be adapted, by its path; heads are not among them."""
    body = f"{model.base_model_prefix}."
    heads = (model.get_output_embeddings(),)
    return {
        path: _size(module)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and module not in heads
        and (path.startswith(body) or not hasattr(model, model.base_model_prefix))
    }


def _size(layer: Any) -> tuple[int, int]:
    if isinstance(layer, Conv1D):
        return int(layer.nx), int(layer.nf)
    return int(layer.in_features), int(layer.out_features)


def is_transposed(model: Any, targets: Sequence[str]) -> bool:
    """Whether the targeted layers hold their weights as (inputs, outputs), as GPT-2's do."""
    layers = dict(model.named_modules())
    paths = [path for path in linear_layers(model) if any(_named(path, one) for one in targets)]
    return all(isinstance(layers[path], Conv1D) for path in paths)


def _named(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")
