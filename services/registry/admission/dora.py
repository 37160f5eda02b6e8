"""What may stand beside LoRA's pairs: DoRA's magnitudes, and the head of a reward model."""

from __future__ import annotations

from collections.abc import Sequence

from services.registry.admission.adapter_config import AdapterConfig
from services.registry.admission.header import Tensor
from services.registry.admission.modules import BaseModules
from services.registry.admission.pairs import NAMES, PREFIX, SHAPES, Pair
from services.registry.errors import refused

_MAGNITUDES = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")
_AGAIN = "Save the adapter again, with the configuration it was trained with."


def set_apart(
    tensors: Sequence[Tensor], config: AdapterConfig
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The tensors of pairs, DoRA's magnitudes and heads; the last two only where the configuration says so."""
    rest, magnitudes, heads = [], [], []
    head_names = {f"{PREFIX}{name}.weight" for name in config.heads}
    for tensor in tensors:
        if config.dora and tensor.name.endswith(_MAGNITUDES):
            magnitudes.append(tensor)
        elif tensor.name in head_names:
            heads.append(tensor)
        else:
            rest.append(tensor)
    return rest, magnitudes, heads


def check_magnitudes(
    magnitudes: Sequence[Tensor], pairs: Sequence[Pair], base: BaseModules
) -> None:
    """Every pair has its vector of magnitudes, one per output feature, and there are no others.

    Raises:
        GraftError: VERSION_REFUSED, naming the tensor.
    """
    modules = {_module(tensor.name): tensor for tensor in magnitudes}
    for pair in pairs:
        tensor = modules.pop(pair.module, None)
        if tensor is None:
            name = f"{PREFIX}{pair.module}{_MAGNITUDES[0]}"
            raise refused(
                NAMES, f"tensor {name}: it is missing, though use_dora is set", _AGAIN, tensor=name
            )
        module = base.find(pair.module)
        features = 0 if module is None else module.out_features
        if tensor.parameters != features or max(tensor.shape, default=0) != features:
            raise refused(
                SHAPES,
                f"tensor {tensor.name}: its shape is {list(tensor.shape)}, but {pair.module} of the base has "
                f"{features} out_features",
                _AGAIN,
                tensor=tensor.name,
            )
    for tensor in modules.values():
        raise refused(
            NAMES, f"tensor {tensor.name}: no LoRA pair belongs to it", _AGAIN, tensor=tensor.name
        )


def check_heads(heads: Sequence[Tensor], config: AdapterConfig, hidden_size: int) -> None:
    """A reward model has one head that gives one number.

    Raises:
        GraftError: VERSION_REFUSED, naming the tensor.
    """
    if not config.heads:
        return
    if len(heads) != 1:
        name = f"{PREFIX}{config.heads[0]}.weight"
        raise refused(
            NAMES,
            f"tensor {name}: there are {len(heads)} heads, and a reward model has one",
            _AGAIN,
            tensor=name,
        )
    (head,) = heads
    if tuple(head.shape) != (1, hidden_size):
        raise refused(
            SHAPES,
            f"tensor {head.name}: its shape is {list(head.shape)}, and a head that gives one number has "
            f"[1, {hidden_size}]",
            _AGAIN,
            tensor=head.name,
        )


def _module(name: str) -> str:
    for suffix in reversed(_MAGNITUDES):
        if name.endswith(suffix):
            return name.removeprefix(PREFIX).removesuffix(suffix)
    return name
