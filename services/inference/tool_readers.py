"""Reads calls out of answers that a structure holds to them, as tools.py makes it.

The form that a model writes by itself is read by its engine's readers.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Sequence

from services.inference.engines.base import Delta, Finish, ToolCallPart, ToolReader

_LETTERS = string.ascii_letters + string.digits
# Between the brackets of a list of calls: the structure lets nothing else come.
_HEAD = re.compile(
    r'\s*(?:\}\s*)?[\[,]\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"parameters"\s*:\s*(?=\{)'
)


def new_call_id() -> str:
    """Nine letters and digits: the one form that every chat template takes back, Mistral's among them."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


class NamedReader(ToolReader):
    """The whole answer is one call's arguments."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._begun = False

    def read(self, delta: Delta) -> Delta:
        """See ToolReader."""
        if delta.text or (delta.finish is not None and not self._begun):
            if self._begun:
                part = ToolCallPart(0, arguments=delta.text)
            else:
                part = ToolCallPart(0, new_call_id(), self._name, delta.text)
            self._begun = True
            delta.tool_calls = (part,)
            delta.text = ""
        _called(delta)
        return delta


class CallsReader(ToolReader):
    """The answer is a list of calls, [{"name": ..., "parameters": {...}}, ...]."""

    def __init__(self) -> None:
        self._kept, self._index = "", -1
        self._depth, self._in_text, self._escaped = 0, False, False

    def read(self, delta: Delta) -> Delta:
        """See ToolReader."""
        delta.tool_calls = self._parts(delta.text)
        delta.text = ""
        if self._index >= 0:
            _called(delta)
        return delta

    def _parts(self, text: str) -> Sequence[ToolCallPart]:
        """The arguments' own text is handed on as it comes; what is between is kept until it is whole."""
        self._kept += text
        parts: list[ToolCallPart] = []
        while self._kept:
            if self._depth == 0:
                head = _HEAD.match(self._kept)
                if head is None:
                    break
                self._index += 1
                self._kept = self._kept[head.end() :]
                parts.append(ToolCallPart(self._index, new_call_id(), json.loads(head[1])))
            size = self._arguments()
            if size:
                parts.append(ToolCallPart(self._index, arguments=self._kept[:size]))
            self._kept = self._kept[size:]
        return parts

    def _arguments(self) -> int:
        """How much of what is kept belongs to the arguments that have begun."""
        for position, letter in enumerate(self._kept):
            if self._escaped:
                self._escaped = False
            elif self._in_text:
                self._escaped = letter == "\\"
                self._in_text = letter != '"'
            elif letter == '"':
                self._in_text = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return position + 1
        return len(self._kept)


def _called(delta: Delta) -> None:
    if delta.finish is Finish.STOP:
        delta.finish = Finish.TOOL_CALLS
