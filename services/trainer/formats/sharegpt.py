"""ShareGPT rows: conversations of {from, value}, with function calls and observations, optionally tools and system."""

from __future__ import annotations

from typing import Any

from services.trainer.formats.base import (
    Example,
    Format,
    Place,
    Row,
    bad_row,
    json_value,
    kind_of,
    list_field,
    text_field,
)
from services.trainer.formats.turns import conversation, read_tools, system_turn, tool_call

_ROLES = {
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


class ShareGpt(Format):
    """Turns by who they are from; "function_call" holds the JSON of a call, or of a list of calls."""

    name = "sharegpt"
    fields = ("conversations", "tools", "system")

    def fits(self, row: Row) -> bool:
        return "conversations" in row

    def read(self, row: Row, place: Place) -> Example:
        messages = [
            *system_turn(row, place),
            *(
                read_turn(turn, f"conversations[{index}]", place)
                for index, turn in enumerate(list_field(row, "conversations", place))
            ),
        ]
        return conversation(messages, read_tools(row, place), place, "conversations")


def read_turn(turn: Any, path: str, place: Place) -> Row:
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
    if speaker not in _ROLES:
        raise bad_row(
            place,
            f'its field "{path}.from" is {speaker!r}, which is nobody we know',
            f"Use one of {', '.join([*_ROLES, 'function_call'])}.",
            f"{path}.from",
        )
    return {"role": _ROLES[speaker], "content": value}
