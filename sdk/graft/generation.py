"""Requests for text: prompts, conversations and how tokens are drawn, as people write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from google.protobuf.json_format import ParseDict, ParseError

from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as pb


class Sampling(TypedDict, total=False):
    """How tokens are drawn; what is left out takes the default that inference_service.proto names."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int
    min_tokens: int


Prompt = str | Sequence[int]
"""Text, or token ids."""
Message = Mapping[str, Any]
"""{"role": ..., "content": ..., "tool_calls": [{"name": ..., "arguments": {...}}]}"""


def sampling_params(sampling: Sampling) -> pb.SamplingParams:
    """The contract's form of sampling parameters; what is None counts as left out.

    Raises:
        GraftError: INVALID_REQUEST, naming the parameter.
    """
    values: dict[str, Any] = {key: value for key, value in sampling.items() if value is not None}
    if isinstance(values.get("stop"), str):
        values["stop"] = [values["stop"]]
    try:
        return pb.SamplingParams(**values)
    except (TypeError, ValueError) as error:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"The sampling parameters cannot be used: {error}",
            next_step=f"Known: {', '.join(Sampling.__annotations__)}.",
        ) from None


def generate_request(
    model: str, prompt: Prompt, sampling: Sampling, priority: int = 0
) -> pb.GenerateRequest:
    """A request to continue a prompt."""
    request = pb.GenerateRequest(model=model, sampling=sampling_params(sampling), priority=priority)
    if isinstance(prompt, str):
        request.prompt = prompt
    else:
        request.prompt_token_ids.CopyFrom(pb.TokenIds(ids=prompt))
    return request


def chat_request(
    model: str,
    messages: Sequence[Message] | str,
    tools: Sequence[Message],
    sampling: Sampling,
    priority: int = 0,
) -> pb.ChatRequest:
    """A request to answer a conversation; a bare text is one message of the user.

    Raises:
        GraftError: INVALID_REQUEST, naming the message.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    request = pb.ChatRequest(model=model, sampling=sampling_params(sampling), priority=priority)
    for number, message in enumerate(messages, 1):
        # An OpenAI message has null for what it lacks.
        given = {key: value for key, value in message.items() if value is not None}
        _parse(_with_json_arguments(given), request.messages.add(), f"Message {number}")
    # As JSON text: a model is asked with the order of keys that it was trained on.
    request.tools_json.extend(json.dumps(dict(tool), ensure_ascii=False) for tool in tools)
    return request


def _with_json_arguments(message: Message) -> Message:
    """A message whose tool calls, in OpenAI's form or in ours, keep their arguments' order of keys."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_tool_call(call) for call in calls]}


def _tool_call(call: Any) -> Any:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "arguments" not in function:
        return call
    arguments = function["arguments"]
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {"name": function.get("name", ""), "arguments_json": arguments}


def _parse(source: Message, target: Any, what: str) -> None:
    try:
        ParseDict(dict(source), target)
    except (ParseError, TypeError, ValueError) as error:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"{what} cannot be used: {error}",
            next_step='A message is {"role": ..., "content": ...}.',
        ) from None
