"""Which tools an answer may call, and what holds it to that: a reader of calls, or a structure.

How a model writes its calls by itself is the engine's matter: see Engine.tool_reader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.inference.engines.base import Engine, Sampling, Structure, ToolReader
from services.inference.fields import invalid_field
from services.inference.prompts import Conversation
from services.inference.templates import ChatTemplate
from services.inference.tool_readers import CallsReader, NamedReader

_MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_FORM = 'Write {"type": "function", "function": {"name": ..., "parameters": {...}}}.'


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """How one question's tools are called.

    Attributes:
        tools: that may be called; empty where none may.
        choice: "", "auto", "required" or a function's name; "none" where there is no plan.
        parallel: whether one answer may call several.
    """

    tools: Sequence[Mapping[str, Any]]
    choice: str
    parallel: bool

    def conversation(self, conversation: Conversation) -> Conversation:
        """Without tools, where none may be called: the template does not tell of them."""
        if self.tools or not conversation.tools:
            return conversation
        return replace(conversation, tools=())

    def sampling(self, sampling: Sampling) -> Sampling:
        """Held to calls, where there has to be one."""
        if not self.tools or self.choice in ("", "auto"):
            return sampling
        schema = self._calls() if self.choice == "required" else self._parameters(self.choice)
        return replace(sampling, structure=Structure(json_schema=json.dumps(schema)))

    def readers(
        self, engine: Engine, template: ChatTemplate | None, count: int
    ) -> Sequence[ToolReader]:
        """One for each answer; none where nobody can read the model's own form, and nobody asked for it.

        Raises:
            GraftError: INVALID_REQUEST where it was asked for.
        """
        if not self.tools:
            return ()
        if self.choice == "required":
            return [CallsReader() for _ in range(count)]
        if self.choice not in ("", "auto"):
            return [NamedReader(self.choice) for _ in range(count)]
        text = None if template is None else template.text
        found = [engine.tool_reader(self.tools, text) for _ in range(count)]
        readers = [each for each in found if each is not None]
        if not readers and self.choice == "auto":
            raise invalid_field(
                "tool_choice",
                'is "auto", and the chat template is of no known form of calls',
                "Set GRAFT_INFERENCE_TOOL_PARSER to the model's form, or ask with tool_choice "
                '"required", which any model keeps to.',
            )
        if not self.parallel:
            for reader in readers:
                reader.only_first = True
        return readers

    def _parameters(self, name: str) -> dict[str, Any]:
        function = next(tool["function"] for tool in self.tools if tool["function"]["name"] == name)
        parameters = function.get("parameters")
        if not parameters:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {"type": "object", **parameters}

    def _calls(self) -> dict[str, Any]:
        """A list of calls; each tool's schema lies under $defs, with its references moved there."""
        names = [tool["function"]["name"] for tool in self.tools]
        definitions = {
            f"tool{index}": _moved(self._parameters(name), f"#/$defs/tool{index}")
            for index, name in enumerate(names)
        }
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": name},
                    "parameters": {"$ref": f"#/$defs/tool{index}"},
                },
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
            for index, name in enumerate(names)
        ]
        most = {} if self.parallel else {"maxItems": 1}
        return {
            "type": "array",
            "minItems": 1,
            **most,
            "items": {"anyOf": calls},
            "$defs": definitions,
        }


NO_TOOLS = ToolPlan((), "none", parallel=True)


def tool_plan(
    conversation: Conversation, sampling: Sampling, choice: str, parallel: bool
) -> ToolPlan:
    """Checks a conversation's tools and what is said of them.

    Raises:
        GraftError: INVALID_REQUEST, naming the field.
    """
    tools = conversation.tools
    if not tools:
        if choice not in ("", "none", "auto"):
            raise invalid_field(
                "tool_choice", f"is {choice[:128]!r}, and there are no tools", "Send tools, too."
            )
        return NO_TOOLS
    names = _checked_names(tools)
    if choice == "none":
        return NO_TOOLS
    if choice not in ("", "auto", "required", *names):
        raise invalid_field(
            "tool_choice",
            f"is {choice[:128]!r}, and no tool has that name",
            f"Use auto, none, required, or one of {', '.join(names)}.",
        )
    if sampling.structure is not None:
        raise invalid_field(
            "sampling.structure",
            "is set, and tools may be called: an answer cannot be held to both",
            'Ask with tool_choice "none" for the structure, or without it for calls.',
        )
    return ToolPlan(tools, choice, parallel)


def _checked_names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    if len(tools) > _MAX_TOOLS:
        raise invalid_field("tools", f"has {len(tools)}", f"{_MAX_TOOLS} at most.")
    names: list[str] = []
    for index, tool in enumerate(tools):
        field = f"tools[{index}].function"
        function = tool.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
            raise invalid_field(f"{field}.name", "is missing", _FORM)
        if not _NAME.fullmatch(name):
            raise invalid_field(
                f"{field}.name",
                f"is {name[:128]!r}",
                "Use 1 to 128 of letters, digits, _, . and -.",
            )
        if name in names:
            raise invalid_field(
                f"{field}.name",
                f"is {name!r}, as tools[{names.index(name)}]'s is",
                "Give each tool a name of its own.",
            )
        parameters = function.get("parameters")
        if parameters is not None and not isinstance(parameters, Mapping):
            raise invalid_field(f"{field}.parameters", "is no JSON schema of an object", _FORM)
        names.append(name)
    return names


def _moved(schema: Any, to: str) -> Any:
    """A schema whose references to its own root lead to where it lies now."""
    if isinstance(schema, Mapping):
        moved = {key: _moved(value, to) for key, value in schema.items()}
        reference = moved.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            moved["$ref"] = to + reference[1:]
        return moved
    if isinstance(schema, list):
        return [_moved(each, to) for each in schema]
    return schema
