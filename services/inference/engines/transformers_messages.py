"""What the service and the process of the transformers engine say to each other: JSON with its length before it.

Knows neither torch nor sockets' ends; both sides import it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from graft.errors import GraftError, Reason

from services.inference.engines.base import (
    Delta,
    Finish,
    Limits,
    Position,
    Sampling,
    TokenLogprob,
)

NAME = "transformers"
# What transformers_adapters.py reads.
KINDS = frozenset(
    {
        "PREFIX_TUNING",
        "BOTTLENECK",
        "PROMPT_TUNING",
        "P_TUNING",
        "IA3",
        "ADALORA",
        "LORA",
        "DORA",
    }
)
LENGTH = struct.Struct("<I")
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TransformersOptions:
    """Settings of the engine; see InferenceSettings for what they mean.

    Attributes:
        device: "auto", "cpu" or "cuda".
        max_num_seqs: requests that are computed at once.
        kv_cache_bytes: what keys and values may take, the padding between requests included.
        max_waiting: requests that may wait for their turn in the engine.
        threads: of a CPU; 0 for half of its cores.
    """

    base: Path
    dtype: str = "auto"
    device: str = "auto"
    max_adapters: int = 8
    max_num_seqs: int = 16
    max_model_len: int | None = None
    kv_cache_bytes: int = 2 * 1024**3
    max_waiting: int = 1024
    threads: int = 0
    trust_remote_code: bool = False


def encode(message: Message) -> bytes:
    """One message as it goes over the wire."""
    text = json.dumps(message, separators=(",", ":")).encode()
    return LENGTH.pack(len(text)) + text


def options_message(options: TransformersOptions) -> Message:
    """The options, for the process."""
    return {**asdict(options), "base": str(options.base)}


def read_options(message: Message) -> TransformersOptions:
    """What options_message() made."""
    return TransformersOptions(**{**message, "base": Path(message["base"])})


def sampling_message(sampling: Sampling) -> Message:
    """How tokens are drawn; what this engine cannot do is refused before."""
    names = (field.name for field in fields(sampling))
    return {name: getattr(sampling, name) for name in names if name in _DOES}


# All that this engine does of Sampling, as far as that has it.
_DOES = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "logprobs",
    "min_tokens",
    "include_stop",
    "special_tokens_text",
)


def check_sampling(sampling: Sampling) -> None:
    """Refuses by name what this engine cannot do.

    Raises:
        GraftError: INVALID_REQUEST.
    """
    usual = Sampling(max_tokens=1)
    for field in fields(Sampling):
        if field.name not in _DOES and getattr(sampling, field.name) != getattr(usual, field.name):
            raise GraftError(
                Reason.INVALID_REQUEST,
                f"sampling.{field.name} is set, and this version is served by the transformers engine, which "
                "cannot do that",
                next_step=f"Leave {field.name} out, or ask a version of a kind that vLLM computes: docs/served-kinds.md.",
                field=f"sampling.{field.name}",
            )


def read_sampling(message: Message) -> Sampling:
    """What sampling_message() made."""
    return Sampling(
        **{
            **message,
            "stop": tuple(message["stop"]),
            "stop_token_ids": tuple(message["stop_token_ids"]),
        }
    )


def delta_message(request: str, delta: Delta) -> list[Any]:
    """What is new of an answer."""
    return [
        request,
        delta.text,
        list(delta.token_ids),
        [[_token(each.drawn), [_token(one) for one in each.top]] for each in delta.logprobs],
        None if delta.finish is None else delta.finish.name,
    ]


def read_delta(message: Sequence[Any]) -> tuple[str, Delta]:
    """The request and what delta_message() made of its delta."""
    request, text, ids, logprobs, finish = message
    positions = tuple(
        Position(TokenLogprob(*drawn), tuple(TokenLogprob(*one) for one in top))
        for drawn, top in logprobs
    )
    return request, Delta(text, ids, positions, None if finish is None else Finish[finish])


def _token(value: TokenLogprob) -> list[Any]:
    return [value.token_id, value.logprob, value.text]


def limits_message(limits: Limits) -> Message:
    """What the engine can take."""
    message = {field.name: getattr(limits, field.name) for field in fields(Limits)}
    return {**message, "kinds": sorted(limits.kinds)}


def read_limits(message: Message) -> Limits:
    """What limits_message() made."""
    return Limits(**{**message, "kinds": frozenset(message["kinds"])})


def error_message(error: GraftError) -> Message:
    """An error, for the other side."""
    return {
        "reason": error.reason.value,
        "message": error.message,
        "next_step": error.next_step,
        "metadata": dict(error.metadata),
    }


def read_error(message: Mapping[str, Any]) -> GraftError:
    """What error_message() made."""
    return GraftError(
        Reason(message["reason"]),
        message["message"],
        next_step=message["next_step"],
        **message["metadata"],
    )
