"""Prompt tuning, P-tuning and prefix tuning: one tensor that comes before the input, or before every layer's keys and values."""

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

_TENSOR = "prompt_embeddings"
_MOST_TOKENS = 65_536


class PromptTuning(Kind):
    """Embeddings before the input."""

    peft_type = "PROMPT_TUNING"
    method = "prompt_tuning"

    def expected(self, config: Mapping[str, Any], base: BaseModules, base_config: str) -> Expected:
        tokens = whole_number(config, "num_virtual_tokens", _MOST_TOKENS)
        shape = base_shape(base_config)
        self._check_width(config, shape.hidden_size)
        if config.get("tokenizer_name_or_path") or config.get("prompt_tuning_init") == "TEXT":
            raise bad_field(
                "tokenizer_name_or_path",
                config.get("tokenizer_name_or_path"),
                "Set it to null and prompt_tuning_init to RANDOM: the tensor says what the prompt is, and "
                "loading must fetch nothing.",
            )
        return Expected(
            {_TENSOR: (tokens, shape.hidden_size)}, (), f"{tokens} virtual tokens before the input"
        )

    def _check_width(self, config: Mapping[str, Any], width: int) -> None:
        if config.get("token_dim") != width:
            raise bad_field(
                "token_dim",
                config.get("token_dim"),
                f"For this base it is {width}: train it on this one.",
            )
        if config.get("num_transformer_submodules") not in (None, 1):
            raise bad_field(
                "num_transformer_submodules",
                config["num_transformer_submodules"],
                "A causal language model has 1.",
            )


class PTuning(PromptTuning):
    """Embeddings that came out of an encoder, which the result does not hold."""

    peft_type = "P_TUNING"
    method = "p_tuning"


class PrefixTuning(PromptTuning):
    """Keys and values before every layer's."""

    peft_type = "PREFIX_TUNING"
    method = "prefix_tuning"

    def expected(self, config: Mapping[str, Any], base: BaseModules, base_config: str) -> Expected:
        tokens = whole_number(config, "num_virtual_tokens", _MOST_TOKENS)
        shape = base_shape(base_config)
        width = shape.kv_heads * shape.head_dim
        self._check_width(config, width)
        if config.get("num_layers") != shape.layers:
            raise bad_field(
                "num_layers", config.get("num_layers"), f"The base has {shape.layers} layers."
            )
        return Expected(
            {_TENSOR: (tokens, shape.layers * 2 * width)},
            (),
            f"{tokens} keys and values before those of {shape.layers} layers",
        )
