"""The sampling of a request: the contract's defaults, and what each field may be."""

from __future__ import annotations

import math

from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as pb

from services.inference.engines.base import Sampling

_MAX_STOP = 16
_MAX_STOP_TOKENS = 1024
_MAX_LOGPROBS = 20
_MAX_INT32 = 2**31 - 1


def checked_sampling(params: pb.SamplingParams) -> Sampling:
    """Sampling with the contract's defaults; max_tokens is 0 where none was set.

    Raises:
        GraftError: INVALID_REQUEST, naming the field.
    """
    given = {field.name for field, _ in params.ListFields()}
    result = Sampling(
        max_tokens=params.max_tokens if params.HasField("max_tokens") else 0,
        temperature=params.temperature if "temperature" in given else 1.0,
        top_p=params.top_p if "top_p" in given else 1.0,
        top_k=max(0, params.top_k),
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty if "repetition_penalty" in given else 1.0,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=params.seed if params.HasField("seed") else None,
        stop=tuple(params.stop),
        stop_token_ids=tuple(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
        logprobs=params.logprobs if params.HasField("logprobs") else None,
        min_tokens=params.min_tokens,
    )
    if given:
        _check(params, result)
    return result


def _check(params: pb.SamplingParams, value: Sampling) -> None:
    if params.HasField("max_tokens"):
        _within("max_tokens", params.max_tokens, 1, _MAX_INT32)
    _within("temperature", value.temperature, 0, 2)
    if not 0 < value.top_p <= 1:
        raise invalid_field("sampling.top_p", f"is {value.top_p}", "It is above 0 and at most 1.")
    _within("top_k", params.top_k, -1, _MAX_INT32)
    _within("min_p", value.min_p, 0, 1)
    if not 0 < value.repetition_penalty < math.inf:
        raise invalid_field(
            "sampling.repetition_penalty", f"is {value.repetition_penalty}", "It is above 0."
        )
    _within("presence_penalty", value.presence_penalty, -2, 2)
    _within("frequency_penalty", value.frequency_penalty, -2, 2)
    if value.seed is not None:
        _within("seed", value.seed, 0, 2**63 - 1)
    _within("min_tokens", value.min_tokens, 0, value.max_tokens or _MAX_INT32)
    if value.logprobs is not None:
        _within("logprobs", value.logprobs, 0, _MAX_LOGPROBS)
    if len(value.stop) > _MAX_STOP:
        raise invalid_field("sampling.stop", f"has {len(value.stop)} strings", "16 at most.")
    if not all(value.stop):
        raise invalid_field("sampling.stop", "has an empty string", "Leave it out.")
    if len(value.stop_token_ids) > _MAX_STOP_TOKENS:
        raise invalid_field(
            "sampling.stop_token_ids",
            f"has {len(value.stop_token_ids)} tokens",
            f"{_MAX_STOP_TOKENS} at most.",
        )
    for token in value.stop_token_ids:
        _within("stop_token_ids", token, 0, _MAX_INT32)


def _within(field: str, value: float, least: float, most: float) -> None:
    # Written so that NaN is outside.
    if not least <= value <= most:
        raise invalid_field(f"sampling.{field}", f"is {value}", f"It is {least} to {most}.")


def invalid_field(field: str, what: str, next_step: str) -> GraftError:
    """INVALID_REQUEST, naming the field."""
    return GraftError(Reason.INVALID_REQUEST, f"{field} {what}", next_step=next_step, field=field)
