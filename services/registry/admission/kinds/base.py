"""What a kind of adapter is to the registry: it says which tensors there must be."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from graft.errors import GraftError

from services.registry.admission.adapter_config import CHECK, shown
from services.registry.admission.modules import BaseModules
from services.registry.errors import refused

_MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class Expected:
    """Which tensors there must be, each with its shape; and what is adapted, in names and in words."""

    tensors: Mapping[str, tuple[int, ...]]
    targets: Sequence[str]
    summary: str


class Kind(ABC):
    """One of PEFT's types, or ours."""

    peft_type: ClassVar[str]
    method: ClassVar[str]

    @abstractmethod
    def expected(self, config: Mapping[str, Any], base: BaseModules, base_config: str) -> Expected:
        """The tensors that a configuration asks for on a base, of which base_config is the config.json.

        Raises:
            GraftError: VERSION_REFUSED.
        """


@dataclass(frozen=True, slots=True)
class BaseShape:
    """A base's sizes, as its config.json has them."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int


def base_shape(config_json: str) -> BaseShape:
    """The sizes of a base.

    Raises:
        GraftError: VERSION_REFUSED, when its configuration does not say them.
    """
    config = json.loads(config_json or "{}")
    config = {**config, **config.get("text_config", {})}
    hidden = _first(config, "hidden_size", "n_embd", "d_model")
    layers = _first(config, "num_hidden_layers", "n_layer", "num_layers")
    heads = _first(config, "num_attention_heads", "n_head")
    kv_heads = _first(config, "num_key_value_heads", "multi_query_group_num", default=heads)
    return BaseShape(hidden, layers, heads, kv_heads, hidden // heads)


def _first(config: Mapping[str, Any], *names: str, default: int = 0) -> int:
    for name in names:
        if type(config.get(name)) is int and 0 < config[name] <= _MOST:
            return int(config[name])
    if default:
        return default
    raise refused(
        CHECK,
        f"The base's config.json says no {names[0]}, which this kind of adapter is held against",
        "Record the base again with its whole config.json.",
    )


def whole_number(config: Mapping[str, Any], field: str, most: int = _MOST) -> int:
    """A field that is a whole number above 0.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    value = config.get(field)
    if type(value) is not int or not 0 < value <= most:
        raise bad_field(field, value, f"It is a whole number from 1 to {most}.")
    return value


def names(config: Mapping[str, Any], field: str) -> list[str]:
    """A field that is a list of module names.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    value = config.get(field)
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise bad_field(field, value, "It is a list of module names.")
    return value


def bad_field(field: str, value: object, next_step: str) -> GraftError:
    """The error of a field of adapter_config.json."""
    return refused(
        CHECK,
        f"adapter_config.json: {field} is {shown(value)}",
        next_step,
        path="adapter_config.json",
    )
