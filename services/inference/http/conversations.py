"""From OpenAI's messages and tools to conversations as chat templates take them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from graft.errors import GraftError

from services.inference.fields import invalid_field
from services.inference.http.errors import not_supported
from services.inference.http.schemas import Message, ToolCall
from services.inference.prompts import Conversation

_ROLES = {
    "system": "system",
    # What OpenAI calls the system since its reasoning models.
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def conversation(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], size_bytes: int
) -> Conversation:
    """As chat templates take it.

    Raises:
        GraftError: INVALID_REQUEST, NOT_SUPPORTED, naming the field.
    """
    if not messages:
        raise invalid_field("messages", "is empty", "Send at least one message of a user.")
    found = [_message(index, message) for index, message in enumerate(messages)]
    if found[-1]["role"] == "assistant":
        raise invalid_field(
            "messages", "ends with the assistant's", "Let a user's or tool's be last."
        )
    return Conversation(found, _tools(tools), size_bytes)


def _tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    for index, tool in enumerate(tools):
        kind = tool.get("type", "function")
        if kind != "function":
            raise not_supported(
                f"tools[{index}].type", f"is {str(kind)[:40]!r}", "Only functions are called here."
            )
        function = tool.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if not name or not isinstance(name, str):
            raise invalid_field(
                f"tools[{index}].function.name",
                "is missing",
                'Write {"type": "function", "function": {"name": ..., "parameters": ...}}.',
            )
    return [dict(tool) for tool in tools]


def tool_choice(given: str | Mapping[str, Any] | None) -> str:
    """As Question has it.

    Raises:
        GraftError: INVALID_REQUEST.
    """
    if given is None:
        return ""
    if isinstance(given, str):
        if given not in ("auto", "none", "required"):
            raise invalid_field(
                "tool_choice", f"is {given[:40]!r}", "Use auto, none, required or name a function."
            )
        return given
    function = given.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if given.get("type") != "function" or not name or not isinstance(name, str):
        raise invalid_field(
            "tool_choice",
            "names no function",
            'Write {"type": "function", "function": {"name": ...}}.',
        )
    return name


def _message(index: int, message: Message) -> dict[str, Any]:
    field = f"messages[{index}]"
    role = _ROLES.get(message.role)
    if role is None:
        raise invalid_field(
            f"{field}.role", f"is {message.role[:40]!r}", f"Use one of {', '.join(_ROLES)}."
        )
    if message.function_call is not None:
        raise not_supported(
            f"{field}.function_call", "is not supported", "Use tool_calls, its newer form."
        )
    result: dict[str, Any] = {"role": role, "content": _content(f"{field}.content", message)}
    if message.name:
        result["name"] = message.name
    if message.tool_call_id:
        result["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        if role != "assistant":
            raise invalid_field(f"{field}.tool_calls", "is set", "Only the assistant calls tools.")
        result["tool_calls"] = [
            _tool_call(f"{field}.tool_calls[{number}]", call)
            for number, call in enumerate(message.tool_calls)
        ]
    return result


def _content(field: str, message: Message) -> str:
    """The text; parts of text are joined as they are."""
    content = message.content
    if content is None:
        if message.role != "assistant":
            raise invalid_field(field, "is missing", "Send a text.")
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid_field(field, "is neither a text nor a list of parts", "Send a text.")
    return "".join(_part(f"{field}[{number}]", part) for number, part in enumerate(content))


def _part(field: str, part: Any) -> str:
    if not isinstance(part, dict):
        raise invalid_field(field, "is not a part", 'Write {"type": "text", "text": ...}.')
    kind = part.get("type")
    if kind != "text":
        raise not_supported(
            f"{field}.type",
            f"is {str(kind)[:40]!r}",
            "The models here read text: send parts of it.",
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise invalid_field(
            f"{field}.text", "is not a text", 'Write {"type": "text", "text": ...}.'
        )
    return text


def _tool_call(field: str, call: ToolCall) -> dict[str, Any]:
    """As chat templates take it: arguments as an object."""
    if call.type != "function" or call.function is None:
        raise not_supported(f"{field}.type", f"is {call.type[:40]!r}", "Only functions are called.")
    if not call.function.name:
        raise invalid_field(
            f"{field}.function.name", "is empty", "Name the function that is called."
        )
    arguments = call.function.arguments
    if isinstance(arguments, str):
        arguments = _arguments(f"{field}.function.arguments", arguments)
    function = {"name": call.function.name, "arguments": arguments or {}}
    # Without its id, as in training: a template is to write what the model has learnt.
    return {"type": "function", "function": function}


def _arguments(field: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text) if text.strip() else {}
        if "\\u" in text:
            # Half of a surrogate pair is JSON, but no tokenizer takes it.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise _not_json(field, str(error)) from None
    if not isinstance(value, dict):
        raise _not_json(field, "it is no object")
    return value


def _not_json(field: str, why: str) -> GraftError:
    return invalid_field(field, f"is not a JSON object ({why})", "Send one as text.")
