"""Protobuf and the inference service's domain meet here; checks what a request says.

See sampling.py for how tokens are drawn, and registry/convert.py for the registry's messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from graft.inference.v1 import inference_service_pb2 as pb

from services.inference.answers import Provenance, Question
from services.inference.engines.base import Delta, Finish, Position, TokenLogprob
from services.inference.failures import Failure
from services.inference.prompts import Conversation
from services.inference.residents import Resident, State
from services.inference.sampling import checked_sampling, invalid_field

_MAX_PRIORITY = 100
_ROLES = ("system", "user", "assistant", "tool")
_FINISH = {
    Finish.STOP: pb.FINISH_REASON_STOP,
    Finish.LENGTH: pb.FINISH_REASON_LENGTH,
    Finish.ABORTED: pb.FINISH_REASON_ABORTED,
}
_STATE = {
    State.LOADING: pb.RESIDENCY_STATE_LOADING,
    State.READY: pb.RESIDENCY_STATE_READY,
    State.DRAINING: pb.RESIDENCY_STATE_DRAINING,
    State.FAILED: pb.RESIDENCY_STATE_FAILED,
}


def generate_question(request: pb.GenerateRequest) -> Question:
    """Raises INVALID_REQUEST, naming the field."""
    kind = request.WhichOneof("input")
    if kind is None:
        raise invalid_field("prompt", "is missing", "Set prompt or prompt_token_ids.")
    # Not copied: it may be far longer than the context.
    prompt: str | Sequence[int] = (
        request.prompt if kind == "prompt" else request.prompt_token_ids.ids
    )
    return Question(
        _model(request.model), prompt, checked_sampling(request.sampling), _priority(request)
    )


def chat_question(request: pb.ChatRequest) -> Question:
    """Raises INVALID_REQUEST, naming the field."""
    if not request.messages:
        raise invalid_field("messages", "is empty", "Send at least one message of a user.")
    messages = [_message(index, message) for index, message in enumerate(request.messages)]
    if messages[-1]["role"] == "assistant":
        raise invalid_field(
            "messages", "ends with the assistant's", "Let a user's or tool's be last."
        )
    conversation = Conversation(messages, _tools(request), request.ByteSize())
    return Question(
        _model(request.model), conversation, checked_sampling(request.sampling), _priority(request)
    )


def _priority(request: pb.GenerateRequest | pb.ChatRequest) -> int:
    if abs(request.priority) > _MAX_PRIORITY:
        raise invalid_field(
            "priority", f"is {request.priority}", f"Use -{_MAX_PRIORITY} to {_MAX_PRIORITY}."
        )
    return request.priority


def _model(model: str) -> str:
    if not model:
        raise invalid_field("model", "is empty", "ListModels names what can be asked.")
    return model


def _message(index: int, message: pb.ChatMessage) -> dict[str, Any]:
    field = f"messages[{index}]"
    if message.role not in _ROLES:
        raise invalid_field(
            f"{field}.role", f"is {message.role[:40]!r}", f"Use one of {', '.join(_ROLES)}."
        )
    result: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        result["name"] = message.name
    if message.tool_call_id:
        result["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        if message.role != "assistant":
            raise invalid_field(f"{field}.tool_calls", "is set", "Only the assistant calls tools.")
        result["tool_calls"] = [
            _tool_call(f"{field}.tool_calls[{number}]", call)
            for number, call in enumerate(message.tool_calls)
        ]
    return result


def _tool_call(field: str, call: pb.ToolCall) -> dict[str, Any]:
    if not call.name:
        raise invalid_field(f"{field}.name", "is empty", "Name the function that is called.")
    arguments = (
        _json_object(f"{field}.arguments_json", call.arguments_json)
        if call.arguments_json
        else plain(call.arguments)
    )
    function = {"name": call.name, "arguments": arguments}
    return {"type": "function", "function": function}


def _tools(request: pb.ChatRequest) -> list[dict[str, Any]]:
    tools = [plain(tool) for tool in request.tools]
    tools += [
        _json_object(f"tools_json[{index}]", text) for index, text in enumerate(request.tools_json)
    ]
    for index, tool in enumerate(tools):
        function = tool.get("function")
        if not isinstance(function, dict) or not function.get("name"):
            raise invalid_field(
                f"tools[{index}].function.name",
                "is missing",
                'Write {"type": "function", "function": {"name": ..., "parameters": ...}}.',
            )
    return tools


def _json_object(field: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
        if "\\u" in text:
            # Half of a surrogate pair is JSON, but no tokenizer takes it.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise invalid_field(
            field, f"is not JSON ({error})", "Send one JSON object as text."
        ) from None
    if not isinstance(value, dict):
        raise invalid_field(field, "is not a JSON object", 'Send one, as {"name": "value"}.')
    return value


def plain(struct: Struct) -> dict[str, Any]:
    """A Struct as JSON has it: keys sorted, because a Struct has no order; whole numbers without ".0"."""
    result: dict[str, Any] = json.loads(json.dumps(_whole(MessageToDict(struct)), sort_keys=True))
    return result


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def provenance(value: Provenance) -> pb.Provenance:
    """What made an answer."""
    version = value.version
    return pb.Provenance(
        version="" if version is None else version.name,
        version_digest="" if version is None else version.digest,
        base=value.base.name,
        base_fingerprint=value.base.fingerprint,
    )


def response(delta: Delta) -> pb.GenerateResponse:
    """What is new of an answer; provenance and usage are the caller's to set."""
    message = pb.GenerateResponse(text=delta.text, token_ids=delta.token_ids)
    if delta.logprobs:
        message.logprobs.extend(_logprobs(delta.logprobs))
    if delta.finish is not None:
        message.finish_reason = _FINISH[delta.finish]
    return message


def _logprobs(positions: Iterable[Position]) -> Iterable[pb.TokenLogprobs]:
    for position in positions:
        yield pb.TokenLogprobs(
            token=_logprob(position.drawn), top=[_logprob(each) for each in position.top]
        )


def _logprob(token: TokenLogprob) -> pb.TokenLogprob:
    return pb.TokenLogprob(token_id=token.token_id, logprob=token.logprob, text=token.text)


def resident_adapter(resident: Resident) -> pb.ResidentAdapter:
    """One instance on the engine."""
    return pb.ResidentAdapter(
        version=resident.version.name,
        version_digest=resident.version.digest,
        state=_STATE[resident.state],
        in_flight=resident.in_flight,
        size_bytes=resident.version.size_bytes,
    )


def failed_adapter(failure: Failure) -> pb.ResidentAdapter:
    """A version that could not be loaded."""
    return pb.ResidentAdapter(
        version=failure.version.name,
        version_digest=failure.version.digest,
        state=pb.RESIDENCY_STATE_FAILED,
        size_bytes=failure.version.size_bytes,
        message=str(failure.error),
    )
