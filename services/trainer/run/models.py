"""Loads the frozen weights of a job's base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from graft.errors import GraftError, Reason
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
)

from services.trainer.run.bases import not_a_model
from services.trainer.spec import BaseSpec

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(folder: Path, spec: BaseSpec) -> Any:
    """The frozen base on the accelerator, or on the CPU where there is none.

    Raises:
        GraftError: NOT_A_MODEL.
    """
    return _load(AutoModelForCausalLM, folder, spec)


def load_scorer(folder: Path, spec: BaseSpec) -> Any:
    """The base with a new head that gives one number per text instead of the vocabulary's.

    Raises:
        GraftError: NOT_A_MODEL.
    """
    return _load(AutoModelForSequenceClassification, folder, spec, num_labels=1)


def _load(model_class: Any, folder: Path, spec: BaseSpec, **further: Any) -> Any:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = compute_dtype(folder, spec, device)
    options: dict[str, Any] = {"dtype": dtype, **further}
    if spec.quantization != "none":
        options["quantization_config"] = _quantization(spec, dtype)
        options["device_map"] = {"": device}
    try:
        model = model_class.from_pretrained(
            folder,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            **options,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise not_a_model(
            str(folder), f"it cannot be loaded ({reason})", "Check its config.json and weights."
        ) from None
    model.config.use_cache = False
    if spec.quantization == "none":
        return model if spec.on_host else model.to(device)
    keep_layout(model)
    return model


def keep_layout(model: Any) -> None:
    """Keeps the quantized layers out of evaluation mode.

    On a CPU their first forward pass in that mode repacks the weights for inference, for good, and from then
    on no gradient goes through them.
    """
    for module in model.modules():
        if type(module).__module__.startswith("bitsandbytes"):
            module.training = True


def _quantization(spec: BaseSpec, dtype: torch.dtype) -> BitsAndBytesConfig:
    if spec.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=spec.quantization,
        bnb_4bit_use_double_quant=spec.double_quantization,
        bnb_4bit_compute_dtype=dtype,
    )


def compute_dtype(folder: Path, spec: BaseSpec, device: torch.device) -> torch.dtype:
    """The type that the frozen weights are computed in: as the spec says, else as stored, on CPU float32."""
    if spec.dtype != "auto":
        return _DTYPES[spec.dtype]
    if device.type == "cpu":
        return torch.float32
    stored = getattr(AutoConfig.from_pretrained(folder), "dtype", None)
    return stored if isinstance(stored, torch.dtype) else torch.bfloat16


def longest_input_tokens(model: Any, wanted: int, taken: int = 0) -> int:
    """The longest sequence that both the spec and the base allow.

    Args:
        model: anything with the base's config.
        wanted: the spec's limit.
        taken: of what the base reads, by a method's learned tokens.

    Raises:
        GraftError: INVALID_SPEC, when they leave no room.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return wanted
    if taken >= limit:
        raise GraftError(
            Reason.INVALID_SPEC,
            f"{taken} learned tokens leave no room for others: the base reads at most {limit}",
            next_step=f"Set the method's virtual_tokens far below {limit}.",
            field="method",
        )
    return min(wanted, limit - taken)
