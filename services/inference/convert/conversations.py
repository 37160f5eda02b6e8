"""From a chat's messages and tools to conversations as chat templates take them."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from graft.inference.v1 import inference_service_pb2 as pb

from services.inference.fields import invalid_field
from services.inference.prompts import Conversation

_ROLES = ("system", "user", "assistant", "tool")


def conversation(request: pb.ChatRequest | pb.CountTokensRequest) -> Conversation:
    """Raises INVALID_REQUEST, naming the field."""
    if not request.messages:
        raise invalid_field("messages", "is empty", "Send at least one message of a user.")
    messages = [_message(index, message) for index, message in enumerate(request.messages)]
    if messages[-1]["role"] == "assistant":
        raise invalid_field(
            "messages", "ends with the assistant's", "Let a user's or tool's be last."
        )
    return Conversation(messages, _tools(request), request.ByteSize())


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
    # Without its id, as in training: a template is to write what the model has learnt.
    return {"type": "function", "function": function}


def _tools(request: pb.ChatRequest | pb.CountTokensRequest) -> list[dict[str, Any]]:
    tools = [plain(tool) for tool in request.tools] if isinstance(request, pb.ChatRequest) else []
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
