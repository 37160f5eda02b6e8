"""Reads one turn as chat templates take it: of {role, content, tool_calls}, or of {from, value}."""

from __future__ import annotations

from typing import Any

from services.trainer.formats.base import (
    Place,
    Row,
    bad_row,
    json_value,
    kind_of,
    text_field,
)
from services.trainer.formats.turns import tool_call

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
}


def read_turn(turn: Any, path: str, place: Place, *, usual: str = "role") -> Row:
    """A turn, however it is written.

    Args:
        path: how to name it in an error.
        usual: "role" or "from": what a turn with neither lacks.

    Raises:
        GraftError: BAD_DATA.
    """
    if isinstance(turn, dict) and usual not in turn:
        usual = next((key for key in ("role", "from") if key in turn), usual)
    return read_message(turn, path, place) if usual == "role" else read_speech(turn, path, place)


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


def read_speech(turn: Any, path: str, place: Place) -> Row:
    """One turn of {from, value} as chat templates take it.

    Raises:
        GraftError: BAD_DATA.
    """
    if not isinstance(turn, dict):
        raise bad_row(
            place,
            f'its field "{path}" holds {kind_of(turn)}, not a turn',
            'Write {"from": ..., "value": ...}.',
            path,
        )
    speaker = text_field(turn, "from", place, path=f"{path}.from")
    value = text_field(turn, "value", place, path=f"{path}.value")
    if speaker == "function_call":
        calls = json_value(value, f"{path}.value", place)
        calls = calls if isinstance(calls, list) else [calls]
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [tool_call(call, f"{path}.value", place) for call in calls],
        }
    if speaker not in _SPEAKERS:
        raise bad_row(
            place,
            f'its field "{path}.from" is {speaker!r}, which is nobody we know',
            f"Use one of {', '.join([*_SPEAKERS, 'function_call'])}.",
            f"{path}.from",
        )
    return {"role": _SPEAKERS[speaker], "content": value}
