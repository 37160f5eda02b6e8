"""Chat messages as OpenAI's API has them: {role, content, tool_calls}, optionally tools."""

from __future__ import annotations

from typing import Any

from services.trainer.formats.base import (
    Example,
    Format,
    Place,
    Row,
    bad_row,
    kind_of,
    list_field,
    text_field,
)
from services.trainer.formats.turns import conversation, read_tools, tool_call

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


class Messages(Format):
    """Messages by role; content may be text, text parts, or null beside tool calls."""

    name = "messages"
    fields = ("messages", "tools")

    def fits(self, row: Row) -> bool:
        return "messages" in row

    def read(self, row: Row, place: Place) -> Example:
        messages = [
            read_message(message, f"messages[{index}]", place)
            for index, message in enumerate(list_field(row, "messages", place))
        ]
        return conversation(messages, read_tools(row, place), place, "messages")


def read_message(message: Any, path: str, place: Place) -> Row:
    """One message as chat templates take it.

    Raises:
        GraftError: BAD_DATA.
    """
    if not isinstance(message, dict):
        raise bad_row(
            place,
            f'its field "{path}" holds {kind_of(message)}, not a message',
            'Write {"role": ..., "content": ...}.',
            path,
        )
    role = text_field(message, "role", place, path=f"{path}.role")
    if role not in _ROLES:
        raise bad_row(
            place,
            f'its field "{path}.role" is {role!r}',
            f"Use one of {', '.join(_ROLES)}.",
            f"{path}.role",
        )
    calls = [
        tool_call(call, f"{path}.tool_calls[{index}]", place)
        for index, call in enumerate(message.get("tool_calls") or [])
    ]
    result: Row = {"role": _ROLES[role], "content": _content(message, path, place, not calls)}
    if calls:
        result["tool_calls"] = calls
    for name in ("name", "tool_call_id"):
        if isinstance(message.get(name), str):
            result[name] = message[name]
    return result


def _content(message: Row, path: str, place: Place, required: bool) -> str:
    parts = message.get("content")
    if not isinstance(parts, list):
        return text_field(message, "content", place, path=f"{path}.content", required=required)
    texts = []
    for index, part in enumerate(parts):
        part_path = f"{path}.content[{index}]"
        if not isinstance(part, dict) or part.get("type") != "text":
            raise bad_row(
                place,
                f'its field "{part_path}" is not a part of type "text"',
                "Only text can be trained on: remove the row or the part.",
                part_path,
            )
        texts.append(text_field(part, "text", place, path=f"{part_path}.text"))
    return "".join(texts)
