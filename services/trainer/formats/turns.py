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
    empty_row,
    json_value,
    kind_of,
    list_field,
    text_field,
)


def conversation(
    messages: Sequence[Row], tools: Sequence[Row], place: Place, field: str
) -> Example:
    """The example of a row's turns.

    Raises:
        GraftError: BAD_DATA, when there is nothing to learn or a system turn is not the first.
    """
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise bad_row(
            place,
            f'its field "{field}" has no turn of the assistant, so there is nothing to learn',
            "Add the answer or remove the row.",
            field,
        )
    if not any(says_something(message) for message in answers):
        raise empty_row(place, field, "has only empty turns of the assistant")
    check_system(messages, place, field)
    return Example(place, Conversation(tuple(messages), tuple(tools)))


def check_system(messages: Sequence[Row], place: Place, field: str) -> None:
    """Refuses a system turn that is not the first.

    Raises:
        GraftError: BAD_DATA.
    """
    for index, message in enumerate(messages):
        if message["role"] == "system" and index > 0:
            raise bad_row(
                place,
                f'its field "{field}[{index}]" is a system turn after other turns',
                "Put the system turn first.",
                field,
            )


def says_something(message: Row) -> bool:
    """Whether a turn has text or calls a tool."""
    return bool(message["content"] or message.get("tool_calls"))


def system_turn(row: Row, place: Place) -> list[Row]:
    """The turn of a row's "system", if it has one.

    Raises:
        GraftError: BAD_DATA.
    """
    system = text_field(row, "system", place, required=False)
    return [{"role": "system", "content": system}] if system else []


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
