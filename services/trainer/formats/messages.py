"""Chat messages as OpenAI's API has them: {role, content, tool_calls}, optionally tools."""

from __future__ import annotations

from services.trainer.formats.base import (
    Example,
    Format,
    Place,
    Row,
    list_field,
)
from services.trainer.formats.turn_readers import read_turn
from services.trainer.formats.turns import conversation, read_tools


class Messages(Format):
    """Messages by role; content may be text, text parts, or null beside tool calls."""

    name = "messages"
    fields = ("messages", "tools")

    def fits(self, row: Row) -> bool:
        return "messages" in row

    def read(self, row: Row, place: Place) -> Example:
        messages = [
            read_turn(message, f"messages[{index}]", place)
            for index, message in enumerate(list_field(row, "messages", place))
        ]
        return conversation(messages, read_tools(row, place), place, "messages")
