"""The bottleneck adapter: down- and up-projections after attention and MLP of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.registry.admission.kinds.base import (
    Expected,
    Kind,
    bad_field,
    base_shape,
    whole_number,
)
from services.registry.admission.modules import BaseModules

_PREFIX = "base_model.model."
_PLACES = (("after_attention", "attention_bottleneck"), ("after_mlp", "mlp_bottleneck"))
_ACTIVATIONS = ("relu", "gelu", "silu")


class Bottleneck(Kind):
    """Small residual networks; the layout is services/trainer/run/bottleneck.py's."""

    peft_type = "BOTTLENECK"
    method = "bottleneck"

    def expected(self, config: Mapping[str, Any], base: BaseModules, base_config: str) -> Expected:
        shape = base_shape(base_config)
        size, hidden = whole_number(config, "size", 65_536), shape.hidden_size
        if config.get("activation") not in _ACTIVATIONS:
            raise bad_field("activation", config.get("activation"), "It is relu, gelu or silu.")
        dropout = config.get("dropout", 0.0)
        if type(dropout) not in (int, float) or not 0 <= dropout < 1:
            raise bad_field("dropout", dropout, "It is a number from 0 to below 1.")
        places = []
        for field, name in _PLACES:
            if type(config.get(field)) is not bool:
                raise bad_field(field, config.get(field), "It is true or false.")
            places += [name] if config[field] else []
        if not places:
            raise bad_field("after_mlp", False, "One of after_attention and after_mlp is true.")
        shapes = {
            "down.weight": (size, hidden),
            "down.bias": (size,),
            "up.weight": (hidden, size),
            "up.bias": (hidden,),
        }
        tensors = {
            f"{_PREFIX}{base.layers_path()}.{layer}.{place}.{name}": sizes
            for layer in range(shape.layers)
            for place in places
            for name, sizes in shapes.items()
        }
        where = " and ".join(place.partition("_")[0] for place in places)
        return Expected(
            tensors, tuple(places), f"{size} wide, after {where} of {shape.layers} layers"
        )
