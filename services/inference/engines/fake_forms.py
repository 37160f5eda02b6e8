"""What the fake engine does where a model is held to a form, calls tools or makes vectors."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from graft.errors import GraftError, Reason

from services.inference.engines.base import Delta, Finish, Structure, ToolCallPart, ToolReader
from services.inference.engines.structure_grammar import form_of
from services.inference.engines.structure_schema import SchemaError, parse, shortest
from services.inference.tool_readers import new_call_id

_VECTOR = 8
_PLAIN: dict[str, Any] = {
    "string": "", "integer": 0, "number": 0, "boolean": True, "null": None, "array": [], "object": {},
}  # fmt: skip


def check(structure: Structure) -> int:
    """Characters of the shortest answer, as far as they are known here.

    Raises:
        GraftError: INVALID_REQUEST.
    """
    kind = form_of(structure)["kind"]
    try:
        if structure.json_schema:
            least = shortest(parse(structure.json_schema))
            if math.isinf(least):
                raise SchemaError("it lets no text through that ends")
            return math.ceil(least)
        if structure.regex:
            re.compile(structure.regex)
        if structure.grammar and "::=" not in structure.grammar:
            raise SchemaError("it has no rule")
    except (SchemaError, re.error) as error:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"sampling.structure.{kind} cannot be used: {error}",
            next_step="Correct it.",
            field=f"sampling.structure.{kind}",
        ) from None
    return min(map(len, structure.choice), default=1)


def smallest(structure: Structure) -> str:
    """An answer of this form; nothing where a regex or a grammar says what it is."""
    if structure.choice:
        return min(structure.choice, key=len)
    if structure.json_object:
        return "{}"
    if structure.json_schema:
        schema = parse(structure.json_schema)
        return json.dumps(_value(schema, schema))
    return ""


def _value(schema: Any, root: Any) -> Any:
    if not isinstance(schema, Mapping):
        return None
    if "$ref" in schema:
        found = root
        for part in schema["$ref"].split("/")[1:]:
            found = found[part]
        return _value(found, root)
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return _value(schema[key][0], root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "null")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "array":
        return [_value(schema.get("items"), root)] * int(schema.get("minItems", 0))
    if kind == "object":
        properties = schema.get("properties", {})
        return {each: _value(properties.get(each), root) for each in schema.get("required", ())}
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    return "a" * int(schema.get("minLength", 0)) if kind == "string" else _PLAIN[kind]


class FakeToolReader(ToolReader):
    """An answer that is "call NAME ARGUMENTS" calls a tool; any other is text."""

    def __init__(self) -> None:
        self._text = ""

    def read(self, delta: Delta) -> Delta:
        """See ToolReader."""
        self._text += delta.text
        begins = "call ".startswith(self._text[:5])
        delta.text = "" if begins and delta.finish is None else delta.text
        if begins and delta.finish is not None:
            _, name, arguments = [*self._text.split(" ", 2), "", ""][:3]
            delta.text = "" if name else self._text
            if name:
                delta.tool_calls = (ToolCallPart(0, new_call_id(), name, arguments),)
                delta.finish = Finish.TOOL_CALLS if delta.finish is Finish.STOP else delta.finish
        return delta


def vector(key: str) -> Sequence[float]:
    """Of length 1, and another for every key."""
    values = [byte - 127.5 for byte in hashlib.sha256(key.encode()).digest()[:_VECTOR]]
    length = math.sqrt(sum(value * value for value in values))
    return [value / length for value in values]
