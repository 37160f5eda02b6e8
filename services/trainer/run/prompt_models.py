"""PEFT's configurations of methods that learn inputs, and what of them goes into a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from graft.errors import GraftError, Reason
from peft import (
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model_state_dict,
)

from services.trainer.methods.base import Setting
from services.trainer.run.peft_models import config_json, write_adapter


def prompt_tuning(setting: Setting, virtual_tokens: int, text: str) -> PromptTuningConfig:
    """Prompt tuning that begins as a text, or as tokens of the vocabulary."""
    if not text:
        return PromptTuningConfig(
            task_type=setting.task_type,
            num_virtual_tokens=virtual_tokens,
            prompt_tuning_init="SAMPLE_VOCAB",
        )
    return PromptTuningConfig(
        task_type=setting.task_type,
        num_virtual_tokens=virtual_tokens,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=text,
        tokenizer_name_or_path=str(setting.base_folder),
    )


def p_tuning(
    model: Any,
    setting: Setting,
    virtual_tokens: int,
    encoder: str,
    hidden: int,
    layers: int,
    dropout: float,
) -> PromptEncoderConfig:
    """P-tuning with an encoder of that kind; hidden 0 is the base's."""
    return PromptEncoderConfig(
        task_type=setting.task_type,
        num_virtual_tokens=virtual_tokens,
        encoder_reparameterization_type=encoder,
        encoder_hidden_size=hidden or model.config.get_text_config().hidden_size,
        encoder_num_layers=layers,
        encoder_dropout=dropout,
    )


def prefix_tuning(
    model: Any, setting: Setting, virtual_tokens: int, encoder_hidden_size: int = 0
) -> PrefixTuningConfig:
    """Prefix tuning; encoder_hidden_size 0 is without a network.

    Raises:
        GraftError: INVALID_SPEC, for a base whose heads PEFT takes for others.
    """
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None)
    if head_dim and head_dim * config.num_attention_heads != config.hidden_size:
        raise GraftError(
            Reason.INVALID_SPEC,
            f"PEFT makes prefixes for heads of {config.hidden_size // config.num_attention_heads} "
            f"features, and this {config.model_type}'s have {head_dim}",
            next_step="Use method prompt_tuning or lora on this base.",
            field="method",
        )
    return PrefixTuningConfig(
        task_type=setting.task_type,
        num_virtual_tokens=virtual_tokens,
        prefix_projection=encoder_hidden_size > 0,
        encoder_hidden_size=encoder_hidden_size or None,
    )


def save(model: Any, folder: Path) -> None:
    """Writes what is put before the input, and a configuration without what it began as.

    Raises:
        GraftError: INVALID_SPEC, when a trained number is not finite.
    """
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    config = json.loads(config_json(model.peft_config["default"]))
    for field in ("tokenizer_name_or_path", "prompt_tuning_init_text", "tokenizer_kwargs"):
        if field in config:
            config[field] = None
    if "prompt_tuning_init" in config:
        # The numbers say what it is; another word would ask for a tokenizer, or for draws, at each load.
        config["prompt_tuning_init"] = "RANDOM"
    write_adapter(weights, json.dumps(config, indent=2, sort_keys=True) + "\n", folder)
