"""From OpenAI's requests to questions: the counterpart of services/inference/convert/requests.py for this door."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from graft.inference.v1 import inference_service_pb2 as pb

from services.inference.engines.base import Sampling
from services.inference.fields import checked_priority, invalid_field
from services.inference.http.conversations import conversation, tool_choice
from services.inference.http.refused import CHAT, COMPLETION, check_refused
from services.inference.http.schemas import ChatRequest, CompletionRequest, Drawn
from services.inference.http.structures import structure_of
from services.inference.prompts import Prompt
from services.inference.questions import Question
from services.inference.sampling import checked_sampling

_MAX_PROMPTS = 128
# vLLM's and OpenAI's default where a completion says nothing.
_COMPLETION_TOKENS = 16


def chat_question(request: ChatRequest, size_bytes: int, session_key: str) -> Question:
    """What a chat asks.

    Raises:
        GraftError: INVALID_REQUEST, NOT_SUPPORTED, naming the field.
    """
    check_refused(request.model_extra or {}, CHAT)
    max_tokens = request.max_tokens or request.max_completion_tokens
    return Question(
        request.model,
        conversation(request.messages, request.tools or [], size_bytes),
        _sampling(request, max_tokens, _chat_logprobs(request)),
        checked_priority(request.priority),
        session_key=session_key or request.user or "",
        n=1 if request.n is None else request.n,
        tool_choice=tool_choice(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls is not False,
    )


def completion_questions(request: CompletionRequest, session_key: str) -> list[Question]:
    """One for each prompt.

    Raises:
        GraftError: INVALID_REQUEST, NOT_SUPPORTED, naming the field.
    """
    check_refused(request.model_extra or {}, COMPLETION)
    max_tokens = _COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    question = Question(
        request.model,
        "",
        _sampling(request, max_tokens, request.logprobs),
        checked_priority(request.priority),
        session_key=session_key or request.user or "",
        n=1 if request.n is None else request.n,
    )
    found = prompts("prompt", request.prompt, _MAX_PROMPTS)
    return [replace(question, prompt=prompt) for prompt in found]


def prompts(
    field: str, given: str | list[int] | list[str] | list[list[int]], most: int
) -> list[Prompt]:
    """One or several prompts, each as text or as token ids.

    Raises:
        GraftError: INVALID_REQUEST, naming the field.
    """
    if isinstance(given, str):
        return [given]
    if not given:
        raise invalid_field(field, "is empty", "Send at least one text.")
    if isinstance(given[0], int):
        return [given]
    if len(given) > most:
        raise invalid_field(field, f"has {len(given)} texts", f"Send at most {most} at once.")
    return list(cast(list[Prompt], given))


def _sampling(request: Drawn, max_tokens: int | None, logprobs: int | None) -> Sampling:
    """Checked by the contract's own rules; what is left out has the contract's defaults."""
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    given: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        # OpenAI's may be negative: the same draws for the same seed is all that it means.
        "seed": None if request.seed is None else request.seed % 2**63,
        "stop": stop,
        "ignore_eos": request.ignore_eos,
        "logprobs": logprobs,
        "min_tokens": request.min_tokens,
    }
    try:
        params = pb.SamplingParams(
            **{name: value for name, value in given.items() if value is not None},
            stop_token_ids=request.stop_token_ids or (),
        )
    except ValueError as error:
        raise invalid_field("stop_token_ids", f"cannot be ({error})", "Name token ids.") from None
    return replace(
        checked_sampling(params),
        structure=structure_of(request),
        include_stop=request.include_stop_str_in_output,
    )


def _chat_logprobs(request: ChatRequest) -> int | None:
    if request.logprobs:
        return request.top_logprobs or 0
    if request.top_logprobs:
        raise invalid_field(
            "top_logprobs", f"is {request.top_logprobs} without logprobs", "Set logprobs to true."
        )
    return None
