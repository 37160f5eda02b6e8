"""PEFT's configurations of methods that learn inputs, and what of them goes into a result."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from graft.errors import GraftError, Reason
from peft import (
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model_state_dict,
)

from services.trainer.methods.base import Setting
from services.trainer.run.peft_models import adapt, config_json, write_adapter


def prompt_tuning(setting: Setting, virtual_tokens: int, text: str) -> PromptTuningConfig:
    """Prompt tuning that begins as a text, or as tokens of the vocabulary.

    Raises:
        GraftError: INVALID_SPEC, for a text without tokens.
    """
    if not text:
        return PromptTuningConfig(
            task_type=setting.task_type,
            num_virtual_tokens=virtual_tokens,
            prompt_tuning_init="SAMPLE_VOCAB",
        )
    if not setting.tokenizer(text)["input_ids"]:
        raise GraftError(
            Reason.INVALID_SPEC,
            f"method.prompt_tuning.initial_text is {text!r}, of which the base's tokenizer makes no tokens",
            next_step="Write a text that says what is wanted, or leave initial_text out.",
            field="method.prompt_tuning.initial_text",
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
    setting: Setting, virtual_tokens: int, encoder_hidden_size: int = 0
) -> PrefixTuningConfig:
    """Prefix tuning; encoder_hidden_size 0 is without a network."""
    return PrefixTuningConfig(
        task_type=setting.task_type,
        num_virtual_tokens=virtual_tokens,
        prefix_projection=encoder_hidden_size > 0,
        encoder_hidden_size=encoder_hidden_size or None,
    )


def adapt_inputs(model: Any, config: PeftConfig, setting: Setting) -> Any:
    """The model with what is learned before its input.

    Raises:
        GraftError: INVALID_SPEC, when the base does not take it.
    """
    try:
        adapted = adapt(model, config, setting)
        if not hasattr(model, "quantization_method"):
            # bitsandbytes would repack its weights for inference.
            with torch.no_grad():
                ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)
                adapted(input_ids=ids, attention_mask=torch.ones_like(ids))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise GraftError(
            Reason.INVALID_SPEC,
            f"A {model.config.model_type} does not take what PEFT would put before its input: {reason}",
            next_step="Use method lora on this base.",
            field="method",
        ) from error
    if "position_ids" in inspect.signature(model.forward).parameters:
        adapted.get_base_model().register_forward_pre_hook(_count_positions, with_kwargs=True)
    return adapted


def _count_positions(
    _model: Any, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Positions without gaps: padding between what is learned and the input takes none.

    PEFT drops those that are given, and transformers would count the padding of prompts of unequal lengths.
    """
    mask = named.get("attention_mask")
    given = named.get("input_ids")
    given = named.get("inputs_embeds") if given is None else given
    if given is None or not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return None
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -given.shape[1] :]
    return inputs, {**named, "position_ids": positions}


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
