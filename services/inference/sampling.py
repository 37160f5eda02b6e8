"""The sampling of a request: the contract's defaults, and what each field may be."""

from __future__ import annotations

import math

from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1 import structured_pb2

from services.inference.engines.base import Sampling, Structure
from services.inference.fields import invalid_field

_MAX_STOP = 16
_MAX_STOP_TOKENS = 1024
_MAX_LOGPROBS = 20
_MAX_STRUCTURE = 64 * 1024
_MAX_CHOICES = 1024
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
        structure=_structure(params.structure) if "structure" in given else None,
        include_stop=params.include_stop,
        prompt_logprobs=params.prompt_logprobs if params.HasField("prompt_logprobs") else None,
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
    if value.prompt_logprobs is not None:
        _within("prompt_logprobs", value.prompt_logprobs, 0, _MAX_LOGPROBS)
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


def answers(params: pb.SamplingParams) -> int:
    """How many answers are asked for; admission checks it."""
    return params.n if params.HasField("n") else 1


def _structure(value: structured_pb2.Structure) -> Structure:
    form = value.WhichOneof("form")
    if form is None:
        raise invalid_field(
            "sampling.structure",
            "is empty",
            "Set json_schema, json_object, regex, choice or grammar.",
        )
    structure = Structure(
        json_schema=value.json_schema,
        json_object=value.json_object,
        regex=value.regex,
        choice=tuple(value.choice.texts),
        grammar=value.grammar,
    )
    check_form(structure)
    return structure


def check_form(structure: Structure) -> None:
    """What is wrong with a structure at first sight; the engine's check_structure finds the rest.

    Raises:
        GraftError: INVALID_REQUEST, naming the field.
    """
    given = [field for field in Structure.__slots__ if getattr(structure, field)]
    if len(given) != 1:
        what = f"has {' and '.join(given)}" if given else "is empty"
        raise invalid_field(
            "sampling.structure",
            what,
            "Set one of json_schema, json_object, regex, choice, grammar.",
        )
    (form,) = given
    value = getattr(structure, form)
    size = sum(map(len, value)) if form == "choice" else 0 if value is True else len(value)
    if size > _MAX_STRUCTURE:
        raise invalid_field(
            f"sampling.structure.{form}", f"has {size} characters", f"{_MAX_STRUCTURE} at most."
        )
    if form == "choice":
        _check_choice(structure.choice)


def _check_choice(texts: tuple[str, ...]) -> None:
    field = "sampling.structure.choice"
    if len(texts) > _MAX_CHOICES:
        raise invalid_field(field, f"has {len(texts)} texts", f"{_MAX_CHOICES} at most.")
    if not all(texts):
        raise invalid_field(field, "has an empty text", "Leave it out.")
    if len(set(texts)) != len(texts):
        raise invalid_field(field, "has a text twice", "Leave one of them out.")


def _within(field: str, value: float, least: float, most: float) -> None:
    # Written so that NaN is outside.
    if not least <= value <= most:
        raise invalid_field(f"sampling.{field}", f"is {value}", f"It is {least} to {most}.")
