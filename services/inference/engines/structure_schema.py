"""How long the shortest JSON text is that a schema lets through; knows no engine and computes nothing else.

A lower bound: what a keyword costs that is not looked at here is counted as nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

MAX_DEPTH = 64
_VALUES = {"string": 2, "number": 1, "integer": 1, "boolean": 4, "null": 4, "array": 2, "object": 2}


class SchemaError(ValueError):
    """What is wrong with a schema, for people."""


def parse(text: str) -> Any:
    """A schema of bounded nesting.

    Raises:
        SchemaError: it is no JSON, no schema, or nested too deeply.
    """
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"it is not JSON ({error})") from None
    if not isinstance(schema, dict | bool):
        raise SchemaError("it is neither an object nor a boolean")
    if _depth(schema) > MAX_DEPTH:
        raise SchemaError(f"it is nested more than {MAX_DEPTH} deep")
    return schema


def shortest(schema: Any) -> float:
    """Characters of the shortest text; infinite when every text would be endless.

    Raises:
        SchemaError: a reference leads nowhere.
    """
    known: dict[str, float] = {}
    references = set(_references(schema))
    targets = {each: _target(schema, each) for each in references}
    known = dict.fromkeys(references, math.inf)
    # From above, until nothing gets shorter: a text that needs itself stays endless.
    for _ in range(len(references) + 1):
        found = {each: _least(targets[each], known) for each in references}
        if found == known:
            break
        known = found
    return _least(schema, known)


def _least(schema: Any, known: Mapping[str, float]) -> float:
    if schema is False:
        return math.inf
    if not isinstance(schema, Mapping):
        return 1
    bounds = [1.0]
    if "$ref" in schema:
        bounds.append(known.get(str(schema["$ref"]), 1))
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            bounds.append(min((_least(each, known) for each in schema[key]), default=math.inf))
    if isinstance(schema.get("allOf"), list):
        bounds += [_least(each, known) for each in schema["allOf"]]
    if "const" in schema:
        bounds.append(_size(schema["const"]))
    if isinstance(schema.get("enum"), list):
        bounds.append(min(map(_size, schema["enum"]), default=math.inf))
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        bounds.append(min((_of_type(each, schema, known) for each in types), default=math.inf))
    return max(bounds)


def _of_type(kind: Any, schema: Mapping[str, Any], known: Mapping[str, float]) -> float:
    least = float(_VALUES.get(str(kind), 1))
    if kind == "string":
        return least + _number(schema.get("minLength"))
    if kind == "array":
        count = _number(schema.get("minItems"))
        first = [_least(each, known) for each in _list(schema.get("prefixItems"))][: int(count)]
        rest = max(0.0, count - len(first))
        return (
            least
            + sum(first)
            + (rest * _least(schema.get("items", True), known) if rest else 0)
            + max(0.0, count - 1)
        )
    if kind == "object":
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        names = [each for each in _list(schema.get("required")) if isinstance(each, str)]
        values = [_size(name) + 1 + _least(properties.get(name, True), known) for name in names]
        return least + sum(values) + max(0, len(values) - 1)
    return least


def _size(value: Any) -> float:
    return float(len(json.dumps(value, ensure_ascii=False, separators=(",", ":"))))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and value > 0 else 0.0


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _references(schema: Any) -> set[str]:
    if isinstance(schema, Mapping):
        found = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set()
        return found.union(*map(_references, schema.values()))
    if isinstance(schema, list):
        return set().union(*map(_references, schema))
    return set()


def _target(schema: Any, reference: str) -> Any:
    if not reference.startswith("#"):
        raise SchemaError(
            f"it refers to {reference[:80]!r}, and only references into itself are known"
        )
    found = schema
    for part in reference[1:].split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdigit() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, Mapping) and key in found:
            found = found[key]
        else:
            raise SchemaError(f"its reference {reference[:80]!r} leads nowhere")
    return found


def _depth(value: Any) -> int:
    """Level by level, and no further than is asked."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
        ]
    return depth
