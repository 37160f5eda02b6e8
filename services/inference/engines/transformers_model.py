"""The base as transformers loads it, and what it can take."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from graft.errors import GraftError, Reason
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils.logging import disable_progress_bar

from services.inference.engines.base import Limits
from services.inference.engines.transformers_messages import KINDS, NAME, TransformersOptions

_MAX_RANK = 512
_TEXTS = 65536
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Base:
    """A base that computes.

    Attributes:
        max_tokens: of one request, its adapter's and its answer included.
        max_cells: keys and values that the memory which was given them holds, in tokens.
        ends: tokens that end an answer.
        text_of: a token's text.
    """

    model: Any
    tokenizer: Any
    max_tokens: int
    max_cells: int
    ends: frozenset[int]
    text_of: Callable[[int], str]


def load_base(options: TransformersOptions) -> Base:
    """Loads base and tokenizer; nothing is fetched from anywhere.

    Raises:
        GraftError: NOT_A_MODEL.
    """
    # A log is no terminal.
    disable_progress_bar()
    torch.set_num_threads(options.threads or _threads())
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        shared = {"trust_remote_code": options.trust_remote_code, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(options.base, **shared)
        model = AutoModelForCausalLM.from_pretrained(
            options.base, dtype=_DTYPES.get(options.dtype, "auto"), **shared
        )
        if not hasattr(model, "quantization_method"):
            model = model.to(device)
        model = model.eval().requires_grad_(False)
    except Exception as error:
        raise _not_a_model(options, str(error) or type(error).__name__) from error
    if not _has_plain_cache(model):
        raise _not_a_model(options, "its layers keep other states than keys and values")
    max_cells = max(1, options.kv_cache_bytes // _bytes_per_token(model))
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", max_cells)
    ends = {tokenizer.eos_token_id} - {None}
    return Base(
        model,
        tokenizer,
        min(options.max_model_len or longest, longest, max_cells),
        max_cells,
        frozenset(ends or _as_set(model.config.eos_token_id)),
        lru_cache(_TEXTS)(lambda token: str(tokenizer.decode([token]))),
    )


def _threads() -> int:
    """The first engine computes on the same cores."""
    return int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, len(os.sched_getaffinity(0)) // 2)


def limits_of(base: Base, options: TransformersOptions) -> Limits:
    """What the engine can take."""
    return Limits(
        max_adapters=options.max_adapters,
        max_rank=_MAX_RANK,
        max_context_tokens=base.max_tokens,
        vocab_size=int(base.model.config.get_text_config().vocab_size),
        max_token_characters=max(map(len, base.tokenizer.get_vocab())),
        kinds=KINDS,
        engine=NAME,
    )


def _has_plain_cache(model: Any) -> bool:
    if getattr(model, "_is_stateful", False):
        return False
    layers = DynamicCache(config=model.config.get_text_config()).layers
    return all(type(each) in (DynamicLayer, DynamicSlidingWindowLayer) for each in layers)


def _bytes_per_token(model: Any) -> int:
    """Of keys and values of all layers, measured."""
    cache = DynamicCache()
    with torch.inference_mode():
        ids = torch.zeros((1, 1), dtype=torch.long, device=model.device)
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def _as_set(value: Any) -> set[int]:
    return set() if value is None else {value} if isinstance(value, int) else set(value)


def _not_a_model(options: TransformersOptions, why: str) -> GraftError:
    return GraftError(
        Reason.NOT_A_MODEL,
        f"The transformers engine cannot serve {options.base}: {why}",
        next_step="Kinds of adapters that vLLM computes are served all the same; "
        "docs/served-kinds.md says what this engine takes.",
    )
