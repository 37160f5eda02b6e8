"""Requests for text: prompts, conversations and how tokens are drawn, as people write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from google.protobuf.json_format import ParseDict, ParseError

from graft.errors import GraftError, Reason
from graft.inference.v1 import inference_service_pb2 as pb
from graft.inference.v1 import structured_pb2


class Sampling(TypedDict, total=False):
    """How tokens are drawn; what is left out takes the default that inference_service.proto names.

    One of json_schema, json_object, regex, choice and grammar says what form the answer must have; see
    structured.proto.
    """

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
    n: int
    include_stop: bool
    prompt_logprobs: int
    json_schema: Mapping[str, Any] | str
    json_object: bool
    regex: str
    choice: Sequence[str]
    grammar: str


_POOLING = {"last": pb.POOLING_LAST, "mean": pb.POOLING_MEAN}
_FORMS = ("json_schema", "json_object", "regex", "choice", "grammar")
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
    forms = {name: values.pop(name) for name in _FORMS if name in values}
    try:
        if forms:
            values["structure"] = _structure(forms)
        return pb.SamplingParams(**values)
    except (TypeError, ValueError) as error:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"The sampling parameters cannot be used: {error}",
            next_step=f"Known: {', '.join(Sampling.__annotations__)}.",
        ) from None


def _structure(forms: dict[str, Any]) -> structured_pb2.Structure:
    if len(forms) > 1:
        raise ValueError(f"{' and '.join(forms)} are set; an answer has one form")
    ((name, value),) = forms.items()
    if name == "choice":
        value = structured_pb2.Choice(texts=value)
    elif name == "json_schema" and not isinstance(value, str):
        value = json.dumps(value)
    return structured_pb2.Structure(**{name: value})


def generate_request(
    model: str, prompt: Prompt, sampling: Sampling, priority: int = 0, session_key: str = ""
) -> pb.GenerateRequest:
    """A request to continue a prompt."""
    request = pb.GenerateRequest(
        model=model,
        sampling=sampling_params(sampling),
        priority=priority,
        session_key=session_key,
    )
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
    session_key: str = "",
    tool_choice: str = "",
    parallel_tool_calls: bool = True,
) -> pb.ChatRequest:
    """A request to answer a conversation; a bare text is one message of the user.

    Raises:
        GraftError: INVALID_REQUEST, naming the message.
    """
    request = pb.ChatRequest(
        model=model,
        sampling=sampling_params(sampling),
        priority=priority,
        session_key=session_key,
        tool_choice=tool_choice,
        one_tool_call=not parallel_tool_calls,
    )
    _converse(request, messages, tools)
    return request


def embed_request(model: str, inputs: Sequence[Prompt], pooling: str) -> pb.EmbedRequest:
    """A request for vectors.

    Raises:
        GraftError: INVALID_REQUEST, naming the pooling.
    """
    kind = _POOLING.get(pooling)
    if kind is None:
        raise GraftError(
            Reason.INVALID_REQUEST, f"pooling is {pooling!r}", next_step="Use last or mean."
        )
    request = pb.EmbedRequest(model=model, pooling=kind)
    for each in inputs:
        if isinstance(each, str):
            request.inputs.add(text=each)
        else:
            request.inputs.add(token_ids=pb.TokenIds(ids=each))
    return request


def count_request(
    model: str, prompt: str | Sequence[Message], tools: Sequence[Message]
) -> pb.CountTokensRequest:
    """A request to count: a text is a prompt to continue, anything else a conversation."""
    if isinstance(prompt, str):
        return pb.CountTokensRequest(model=model, prompt=prompt)
    request = pb.CountTokensRequest(model=model)
    _converse(request, prompt, tools)
    return request


def _converse(
    request: pb.ChatRequest | pb.CountTokensRequest,
    messages: Sequence[Message] | str,
    tools: Sequence[Message],
) -> None:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    for number, message in enumerate(messages, 1):
        # An OpenAI message has null for what it lacks.
        given = {key: value for key, value in message.items() if value is not None}
        _parse(_with_json_arguments(given), request.messages.add(), f"Message {number}")
    # As JSON text: a model is asked with the order of keys that it was trained on.
    request.tools_json.extend(json.dumps(dict(tool), ensure_ascii=False) for tool in tools)


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
    result = {"name": function.get("name", ""), "arguments_json": arguments}
    return {**result, "id": call["id"]} if call.get("id") else result


def _parse(source: Message, target: Any, what: str) -> None:
    try:
        ParseDict(dict(source), target)
    except (ParseError, TypeError, ValueError) as error:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"{what} cannot be used: {error}",
            next_step='A message is {"role": ..., "content": ...}.',
        ) from None
