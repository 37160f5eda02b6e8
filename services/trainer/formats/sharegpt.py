"""ShareGPT rows: conversations of {from, value}, with function calls and observations, optionally tools and system."""

from __future__ import annotations

from services.trainer.formats.base import (
    Example,
    Format,
    Place,
    Row,
    list_field,
)
from services.trainer.formats.turn_readers import read_turn
from services.trainer.formats.turns import conversation, read_tools, system_turn


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
                read_turn(turn, f"conversations[{index}]", place, usual="from")
                for index, turn in enumerate(list_field(row, "conversations", place))
            ),
        ]
        return conversation(messages, read_tools(row, place), place, "conversations")
