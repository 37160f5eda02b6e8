"""Prompt tuning, P-tuning and prefix tuning: one tensor that comes before the input, or before every layer's keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.registry.admission.kinds.base import (
    BaseShape,
    Expected,
    Kind,
    bad_field,
    base_shape,
    same_number,
    whole_number,
)
from services.registry.admission.modules import BaseModules

_TENSOR = "prompt_embeddings"
_MOST_TOKENS, _MOST_WIDE, _MOST_DEEP = 65_536, 65_536, 100
_INITS = ("RANDOM", "SAMPLE_VOCAB")
_ENOUGH = "the tensor says what the prompt is, and loading must fetch nothing."


class PromptTuning(Kind):
    """Embeddings before the input."""

    peft_type = "PROMPT_TUNING"
    method = "prompt_tuning"

    def expected(self, config: Mapping[str, Any], base: BaseModules, base_config: str) -> Expected:
        tokens = whole_number(config, "num_virtual_tokens", _MOST_TOKENS)
        shape = base_shape(base_config)
        _check_numbers(config, shape, shape.hidden_size)
        same_number(config, "num_attention_heads", shape.heads, "The base's heads are")
        self._check_loading(config)
        return Expected(
            {_TENSOR: (tokens, shape.hidden_size)}, (), f"{tokens} virtual tokens before the input"
        )

    def _check_loading(self, config: Mapping[str, Any]) -> None:
        """Loading fetches no tokenizer, and runs no code of one."""
        for field in ("tokenizer_name_or_path", "tokenizer_kwargs"):
            if config.get(field):
                raise bad_field(field, config[field], f"Set it to null: {_ENOUGH}")
        if config.get("prompt_tuning_init", "RANDOM") not in _INITS:
            raise bad_field(
                "prompt_tuning_init",
                config["prompt_tuning_init"],
                f"Set it to RANDOM, and what belongs to it to null: {_ENOUGH}",
            )


class PTuning(PromptTuning):
    """Embeddings that came out of an encoder, which the result does not hold."""

    peft_type = "P_TUNING"
    method = "p_tuning"

    def _check_loading(self, config: Mapping[str, Any]) -> None:
        """Who trains on makes an encoder of these sizes again."""
        if config.get("encoder_reparameterization_type", "MLP") not in ("MLP", "LSTM"):
            raise bad_field(
                "encoder_reparameterization_type",
                config["encoder_reparameterization_type"],
                "It is MLP or LSTM.",
            )
        whole_number(config, "encoder_hidden_size", _MOST_WIDE)
        whole_number(config, "encoder_num_layers", _MOST_DEEP)


def _check_numbers(config: Mapping[str, Any], shape: BaseShape, width: int) -> None:
    """PEFT makes its tensor of these before it reads ours."""
    if whole_number(config, "token_dim") != width:
        raise bad_field(
            "token_dim", config["token_dim"], f"For this base it is {width}: train it on this one."
        )
    same_number(config, "num_layers", shape.layers, "The base's layers are")
    same_number(config, "num_transformer_submodules", 1, "A causal language model's are")


class PrefixTuning(Kind):
    """Keys and values before every layer's."""

    peft_type = "PREFIX_TUNING"
    method = "prefix_tuning"

    def expected(self, config: Mapping[str, Any], base: BaseModules, base_config: str) -> Expected:
        tokens = whole_number(config, "num_virtual_tokens", _MOST_TOKENS)
        shape = base_shape(base_config)
        width = shape.kv_heads * shape.head_dim
        for field in ("num_layers", "num_attention_heads"):
            whole_number(config, field)
        _check_numbers(config, shape, width)
        # PEFT cuts the tensor by them: the heads of keys and values, which may be fewer.
        same_number(config, "num_attention_heads", shape.kv_heads, "The base's heads of keys are")
        if type(config.get("prefix_projection", False)) is not bool:
            raise bad_field(
                "prefix_projection", config["prefix_projection"], "It is true or false."
            )
        if config.get("encoder_hidden_size") is not None:
            whole_number(config, "encoder_hidden_size", _MOST_WIDE)
        return Expected(
            {_TENSOR: (tokens, shape.layers * 2 * width)},
            (),
            f"{tokens} keys and values before those of {shape.layers} layers",
        )
