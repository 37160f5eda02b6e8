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
# As many as a base's version may have.
_MAX_LAYERS = 10_000
_NO_HEAD = "Train a LoRA where a head is trained too."


@dataclass(frozen=True, slots=True)
class Expected:
    """Which tensors there must be, each with its shape; and what is adapted, in names and in words.

    rank and alpha are 0 for a kind that has none.
    """

    tensors: Mapping[str, tuple[int, ...]]
    targets: Sequence[str]
    summary: str
    rank: int = 0
    alpha: float = 0.0


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
    config = _text_config(config_json)
    hidden = _first(config, "hidden_size", "n_embd", "d_model")
    layers = _first(config, "num_hidden_layers", "n_layer", "num_layers", most=_MAX_LAYERS)
    heads = _first(config, "num_attention_heads", "n_head")
    kv_heads = _first(config, "num_key_value_heads", "multi_query_group_num", default=heads)
    # Some bases have heads that are wider or narrower than their share of the hidden size.
    head_dim = _first(config, "head_dim", default=max(1, hidden // heads))
    return BaseShape(hidden, layers, heads, kv_heads, head_dim)


def hidden_size(config_json: str) -> int:
    """The width of a base's layers.

    Raises:
        GraftError: VERSION_REFUSED, when its configuration does not say it.
    """
    return _first(_text_config(config_json), "hidden_size", "n_embd", "d_model")


def _text_config(config_json: str) -> Mapping[str, Any]:
    config = json.loads(config_json or "{}")
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def _first(config: Mapping[str, Any], *names: str, default: int = 0, most: int = _MOST) -> int:
    for name in names:
        if type(config.get(name)) is int and 0 < config[name] <= most:
            return int(config[name])
    if default:
        return default
    raise refused(
        CHECK,
        f"The base's config.json says no {names[0]} from 1 to {most}, which this kind of adapter is "
        "held against",
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


def check_common(config: Mapping[str, Any]) -> None:
    """What no kind beside LoRA may bring: heads, other trained modules, tasks other than language.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise bad_field("task_type", config["task_type"], f"It is CAUSAL_LM. {_NO_HEAD}")
    for field in ("modules_to_save", "trainable_token_indices"):
        if config.get(field):
            raise bad_field(field, config[field], f"It is null for this kind. {_NO_HEAD}")


def same_number(config: Mapping[str, Any], field: str, wanted: int, why: str) -> None:
    """A field that PEFT fills from the base, or leaves out where it needs none.

    Raises:
        GraftError: VERSION_REFUSED.
    """
    value = config.get(field)
    if value is not None and (type(value) is not int or value != wanted):
        raise bad_field(field, value, f"{why} {wanted}: train it on this base.")


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
