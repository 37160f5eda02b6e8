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
        if config.dora and tensor.name.startswith(PREFIX) and tensor.name.endswith(_MAGNITUDES):
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
    modules: dict[str, Tensor] = {}
    for tensor in magnitudes:
        first = modules.setdefault(_module(tensor.name), tensor)
        if first is not tensor:
            raise refused(
                NAMES,
                f"tensor {tensor.name}: {first.name} is of the same module",
                _AGAIN,
                tensor=tensor.name,
            )
    for pair in pairs:
        own = modules.pop(pair.module, None)
        if own is None:
            name = f"{PREFIX}{pair.module}{_MAGNITUDES[0]}"
            raise refused(
                NAMES, f"tensor {name}: it is missing, though use_dora is set", _AGAIN, tensor=name
            )
        module = base.find(pair.module)
        features = 0 if module is None else module.out_features
        if tuple(own.shape) != (features,):
            raise refused(
                SHAPES,
                f"tensor {own.name}: its shape is {list(own.shape)}, but {pair.module} of the base has "
                f"{features} out_features",
                _AGAIN,
                tensor=own.name,
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
