"""The form that an answer must have, in each dialect: OpenAI's response_format, vLLM's newer and older fields."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from services.inference.engines.base import Structure
from services.inference.fields import invalid_field
from services.inference.http.errors import not_supported
from services.inference.http.schemas import Drawn
from services.inference.sampling import check_form


def structure_of(request: Drawn) -> Structure | None:
    """The one form that the answer must have, by whichever name it was given.

    Raises:
        GraftError: INVALID_REQUEST, NOT_SUPPORTED, naming the field.
    """
    found = list(_named(request))
    if len(found) > 1:
        (first, _), (second, _), *_ = found
        raise invalid_field(second, f"is set, and so is {first}", "An answer has one form.")
    for _, structure in found:
        check_form(structure)
        return structure
    return None


def _named(request: Drawn) -> Iterator[tuple[str, Structure]]:
    given = request.response_format
    if given is not None and (structure := _response_format(given)) is not None:
        yield "response_format", structure
    outputs = request.structured_outputs
    if outputs is not None:
        if outputs.structural_tag is not None:
            raise not_supported(
                "structured_outputs.structural_tag", "is not supported", "Use a grammar."
            )
        if outputs.json_object:
            yield "structured_outputs.json_object", Structure(json_object=True)
        values = (outputs.json_, outputs.regex, outputs.choice, outputs.grammar)
        yield from _forms("structured_outputs.", *values)
    yield from _forms(
        "guided_",
        request.guided_json,
        request.guided_regex,
        request.guided_choice,
        request.guided_grammar,
    )


def _forms(
    prefix: str,
    schema: str | dict[str, Any] | None,
    regex: str | None,
    choice: list[str] | None,
    grammar: str | None,
) -> Iterator[tuple[str, Structure]]:
    if schema is not None:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        yield f"{prefix}json", Structure(json_schema=text)
    if regex is not None:
        yield f"{prefix}regex", Structure(regex=regex)
    if choice is not None:
        yield f"{prefix}choice", Structure(choice=tuple(choice))
    if grammar is not None:
        yield f"{prefix}grammar", Structure(grammar=grammar)


def _response_format(given: Mapping[str, Any]) -> Structure | None:
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Structure(json_object=True)
    if kind == "json_schema":
        named = given.get("json_schema")
        schema = named.get("schema") if isinstance(named, dict) else None
        if not isinstance(schema, dict):
            raise invalid_field(
                "response_format.json_schema.schema",
                "is not an object",
                'Write {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}.',
            )
        return Structure(json_schema=json.dumps(schema))
    raise invalid_field(
        "response_format.type", f"is {str(kind)[:40]!r}", "Use text, json_object or json_schema."
    )
