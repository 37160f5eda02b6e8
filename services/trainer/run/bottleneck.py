"""The bottleneck adapter's modules: attached to the decoder layers of a model, saved, and loaded again onto a fresh one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from graft.errors import GraftError, Reason
from safetensors.torch import load_file
from torch import nn

from services.trainer.run.peft_models import CONFIG, WEIGHTS, Files, write_adapter

PEFT_TYPE = "BOTTLENECK"
_PREFIX = "base_model.model."
_AFTER_ATTENTION, _AFTER_MLP = "attention_bottleneck", "mlp_bottleneck"
_ATTENTIONS = ("self_attn", "attn", "self_attention", "attention")
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """What a bottleneck is like: its width, inner function, places and dropout."""

    size: int
    activation: str
    after_attention: bool
    after_mlp: bool
    dropout: float = 0.0


class Bottleneck(nn.Module):
    """x + up(f(down(x))). It begins as the identity, because up is zero.

    Args:
        hidden: features of the layer.
        shape: of the bottleneck.
    """

    def __init__(self, hidden: int, shape: Shape, device: torch.device | None = None) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, shape.size, device=device)
        self.up = nn.Linear(shape.size, hidden, device=device)
        self.dropout = nn.Dropout(shape.dropout)
        self._activation = _ACTIVATIONS[shape.activation]
        # Houlsby et al. 2019, section 3.6: near the identity at first.
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of and to the shape (..., hidden)."""
        inner = self._activation(self.down(x.to(self.down.weight.dtype)))
        change: torch.Tensor = self.up(self.dropout(inner))
        return x + change.to(x.dtype)


def attach(model: Any, shape: Shape, *, trained: bool) -> Any:
    """Puts a bottleneck behind attention and MLP of every decoder layer; all else is frozen.

    Args:
        model: a causal language model of the transformers library.
        trained: whether the bottlenecks are, or are only used.

    Raises:
        GraftError: INVALID_SPEC, when its layers are not built of an attention and an MLP.
    """
    model.requires_grad_(False)
    for layer, attention in _layers(model):
        places = (
            (shape.after_attention, _AFTER_ATTENTION, attention),
            (shape.after_mlp, _AFTER_MLP, layer.mlp),
        )
        device = next(layer.parameters()).device
        for wanted, name, module in places:
            if wanted:
                bottleneck = Bottleneck(model.config.get_text_config().hidden_size, shape, device)
                bottleneck.requires_grad_(trained)
                layer.add_module(name, bottleneck)
                module.register_forward_hook(_behind(bottleneck))
    return model


def _behind(bottleneck: Bottleneck) -> Callable[..., Any]:
    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (bottleneck(output[0]), *output[1:])
        return bottleneck(output)

    return hook


def save(model: Any, shape: Shape, base_name: str, folder: Path) -> None:
    """Writes the bottlenecks: their tensors, and what they are like.

    Raises:
        GraftError: INVALID_SPEC, when a trained number is not finite.
    """
    weights = {f"{_PREFIX}{name}": tensor for name, tensor in _tensors(model)}
    config = {
        "peft_type": PEFT_TYPE,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "size": shape.size,
        "activation": shape.activation,
        "after_attention": shape.after_attention,
        "after_mlp": shape.after_mlp,
        "dropout": shape.dropout,
        "inference_mode": True,
    }
    write_adapter(weights, json.dumps(config, indent=2, sort_keys=True) + "\n", folder)


def checkpoint_files(model: Any) -> Files:
    """The bottlenecks' tensors, for a checkpoint; they are the model's own."""
    return {WEIGHTS: {f"{_PREFIX}{name}": tensor for name, tensor in _tensors(model)}}


def load_bottleneck(model: Any, folder: Path) -> Any:
    """A fresh base with the bottlenecks of a folder that save() wrote, for inference.

    Raises:
        GraftError: INVALID_SPEC, when the folder is of another method or the model of another shape.
    """
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    if config.get("peft_type") != PEFT_TYPE:
        raise _unfit(f"{folder.name} is {config.get('peft_type')}, not {PEFT_TYPE}")
    fields = ("size", "activation", "after_attention", "after_mlp")
    attach(model, Shape(*(config[field] for field in fields)), trained=False)
    load_weights(model, folder)
    return model.eval()


def load_weights(model: Any, folder: Path) -> None:
    """Puts a folder's tensors into bottlenecks that are attached.

    Raises:
        GraftError: INVALID_SPEC, when they do not fit.
    """
    given = load_file(folder / WEIGHTS)
    wanted = {f"{_PREFIX}{name}": tensor for name, tensor in _tensors(model)}
    if wanted.keys() != given.keys():
        odd = sorted(wanted.keys() ^ given.keys())[0]
        raise _unfit(f"the tensor {odd} is in one of adapter and model only")
    for name, tensor in wanted.items():
        if tensor.shape != given[name].shape:
            raise _unfit(
                f"{name} has the shape {tuple(given[name].shape)}, not {tuple(tensor.shape)}"
            )
        tensor.data.copy_(given[name])


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in model.named_parameters():
        if f".{_AFTER_ATTENTION}." in name or f".{_AFTER_MLP}." in name:
            yield name, parameter


def _layers(model: Any) -> list[tuple[Any, Any]]:
    """The decoder layers, each with its attention."""
    found = []
    for module in model.modules():
        attention = next((getattr(module, n) for n in _ATTENTIONS if hasattr(module, n)), None)
        if isinstance(attention, nn.Module) and isinstance(getattr(module, "mlp", None), nn.Module):
            found.append((module, attention))
    config = model.config.get_text_config()
    if len(found) != config.num_hidden_layers:
        raise _unfit(
            f"{len(found)} of {config.num_hidden_layers} layers of a {config.model_type} are built of "
            "attention and MLP"
        )
    return found


def _unfit(why: str) -> GraftError:
    return GraftError(
        Reason.INVALID_SPEC,
        f"The bottleneck adapter does not fit the base: {why}",
        next_step="Use the base that it was trained on, or train with method lora.",
        field="method.bottleneck",
    )
