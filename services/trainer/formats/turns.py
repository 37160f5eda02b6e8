"""What the conversational formats share: tools, tool calls, and whether there is an answer to learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.trainer.formats.base import (
    Conversation,
    Example,
    Place,
    Row,
    bad_row,
    json_value,
    kind_of,
    list_field,
)


def conversation(
    messages: Sequence[Row], tools: Sequence[Row], place: Place, field: str
) -> Example:
    """The example of a row's turns.

    Raises:
        GraftError: BAD_DATA, when there is nothing to learn or a system turn is not the first.
    """
    if not any(_says_something(message) for message in messages):
        raise bad_row(
            place,
            f'its field "{field}" has no turn of the assistant, so there is nothing to learn',
            "Add the answer or remove the row.",
            field,
        )
    for index, message in enumerate(messages):
        if message["role"] == "system" and index > 0:
            raise bad_row(
                place,
                f'its field "{field}[{index}]" is a system turn after other turns',
                "Put the system turn first.",
                field,
            )
    return Example(place, Conversation(tuple(messages), tuple(tools)))


def _says_something(message: Row) -> bool:
    return message["role"] == "assistant" and bool(message["content"] or message.get("tool_calls"))


def read_tools(row: Row, place: Place) -> list[Row]:
    """The tools of a row, each as {"type": "function", "function": {...}}.

    Raises:
        GraftError: BAD_DATA.
    """
    tools = []
    for index, tool in enumerate(list_field(row, "tools", place, required=False)):
        path = f"tools[{index}]"
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise bad_row(
                place,
                f'its field "{path}" is not a tool with a name',
                'Write {"name": ..., "description": ..., "parameters": {...}}.',
                path,
            )
        tools.append({"type": "function", "function": function})
    return tools


def tool_call(call: Any, path: str, place: Place) -> Row:
    """One tool call with its arguments as a mapping; JSON text is read.

    Raises:
        GraftError: BAD_DATA.
    """
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise bad_row(
            place,
            f'its field "{path}" is not a call with a name ({kind_of(call)})',
            'Write {"name": ..., "arguments": {...}}.',
            path,
        )
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = json_value(arguments, f"{path}.arguments", place) if arguments.strip() else {}
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
