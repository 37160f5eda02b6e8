"""A structure as llguidance takes it, the same wherever it is compiled: in the trial and in the engine."""

from __future__ import annotations

import json
from typing import Any, TypedDict

from services.inference.engines.base import Structure

_OPTIONS = {
    "coerce_one_of": True,
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}


class Form(TypedDict):
    """A structure on its way to another process: the field's name and its value."""

    kind: str
    value: Any


def form_of(structure: Structure) -> Form:
    """The one field that is set."""
    for kind in Structure.__slots__:
        value = getattr(structure, kind)
        if value:
            return {"kind": kind, "value": value}
    raise ValueError("a structure without a form")


def schema_of(structure: Structure) -> str:
    """The JSON schema that is compiled; empty for a form that is none.

    Of oneOf any may fit, as no compiler here can count them. It is written on one line, as json.dumps
    does and as calls of tools are trained: a model cannot lose itself in white space.
    """
    return _with_options(structure.json_schema or ('{"type":"object"}' * structure.json_object))


def _with_options(text: str) -> str:
    schema = json.loads(text) if text else None
    if not isinstance(schema, dict):
        return text
    return json.dumps({**schema, "x-guidance": _OPTIONS}, ensure_ascii=False)


def grammar_of(form: Form) -> str:
    """llguidance's serialized form.

    Raises:
        ValueError: it cannot be read.
    """
    from llguidance import LLMatcher, grammar_from

    kind, value = form["kind"], form["value"]
    if kind in ("json_schema", "json_object"):
        schema = schema_of(Structure(**{kind: value}))
        # The defaults are those of vLLM.
        made: str = LLMatcher.grammar_from_json_schema(
            schema, defaults={"whitespace_flexible": True}
        )
    elif kind == "regex":
        made = grammar_from("regex", value)
    elif kind == "choice":
        made = grammar_from("choice", json.dumps(value))
    else:
        made = grammar_from("grammar", value)
    return made
