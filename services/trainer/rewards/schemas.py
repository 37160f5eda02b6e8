"""JSON schemas (draft 2020-12) that decide about any JSON within a bounded time and ask nobody else.

The `jsonschema` library decides. Around it: no reference leaves the schema, patterns are RE2's, and every
keyword's work is counted, because references can double the work with every level.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.validators import extend
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from services.trainer.rewards.patterns import Pattern
from services.trainer.rewards.schema_keywords import counted_keywords
from services.trainer.rewards.work import TooMuchWorkError, Work

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_MOST_CHARACTERS = 16 * 1024
# What these evaluate cannot be counted from outside; $id and $schema would change what is evaluated.
_REFUSED = {
    "$dynamicRef": 'use "$ref"',
    "$id": "leave it out",
    "$schema": "write it at the top only",
    "unevaluatedItems": 'use "items"',
    "unevaluatedProperties": 'use "additionalProperties"',
}
# One of each kind: a schema that does not end on these ends on nothing.
_SAMPLES: tuple[Any, ...] = (None, True, 0, "", [], [[]], {}, {"a": {}})


class Schema:
    """A schema that can be asked.

    Args:
        text: the schema as JSON.

    Raises:
        ValueError: saying in words what is wrong with it.
    """

    def __init__(self, text: str) -> None:
        contents = _read(text)
        patterns = _check(contents)
        self._work = Work(contents)
        validator = extend(Draft202012Validator, counted_keywords(self._work, patterns))
        self._validator = validator(contents, registry=Registry())
        self._check_ends()

    def allows(self, value: Any) -> bool:
        """Whether the schema allows what json.loads() gave; no when that cannot be decided in time."""
        try:
            self._work.begin(value)
            return bool(self._validator.is_valid(value))
        except (TooMuchWorkError, RecursionError, ArithmeticError, ValueError):
            # ArithmeticError and ValueError: numbers too large for multipleOf, or for Python to print.
            return False

    def _check_ends(self) -> None:
        for sample in _SAMPLES:
            self._work.begin(sample)
            try:
                self._validator.is_valid(sample)
            except (TooMuchWorkError, RecursionError):
                raise ValueError(
                    f"it does not come to an end on {json.dumps(sample)}: a reference leads back to "
                    "itself, or references double the work too often"
                ) from None


def strict_json(text: str) -> Any:
    """The value of JSON, without the NaN and Infinity that Python adds.

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, parse_constant=_not_json)


def _not_json(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _read(text: str) -> Any:
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"it has {len(text)} characters, more than {_MOST_CHARACTERS}")
    try:
        contents = strict_json(text)
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(contents, dict | bool):
        raise ValueError("it is neither an object nor true or false")
    if isinstance(contents, dict) and (draft := contents.pop("$schema", _DRAFT)) != _DRAFT:
        raise ValueError(f'its "$schema" is {draft!r}, and only {_DRAFT!r} is read')
    try:
        Draft202012Validator.check_schema(contents, format_checker=None)
    except SchemaError as error:
        raise ValueError(f"{error.message} (at {error.json_path})") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return contents


def _check(contents: Any) -> dict[str, Pattern]:
    """Checks every schema within; gives the patterns of all of them, compiled."""
    schemas = list(_within(DRAFT202012.create_resource(contents)))
    known = {id(schema) for schema in schemas}
    registry: Registry[Any] = Registry().with_resource("", DRAFT202012.create_resource(contents))
    patterns: dict[str, Pattern] = {}
    for schema in schemas:
        for keyword in _REFUSED.keys() & schema.keys():
            raise ValueError(f'it has "{keyword}", which is refused: {_REFUSED[keyword]}')
        if "$ref" in schema:
            _check_reference(schema["$ref"], registry, known)
        texts = [
            *schema.get("patternProperties", ()),
            *[schema[k] for k in ("pattern",) if k in schema],
        ]
        for text in texts:
            try:
                patterns[text] = Pattern(text)
            except ValueError as error:
                raise ValueError(f"its pattern {text!r} is not one of RE2: {error}") from None
    return patterns


def _within(resource: Resource[Any]) -> Iterator[dict[str, Any]]:
    if isinstance(resource.contents, dict):
        yield resource.contents
        for inner in resource.subresources():
            yield from _within(inner)


def _check_reference(reference: str, registry: Registry[Any], known: set[int]) -> None:
    if not reference.startswith("#"):
        raise ValueError(
            f'it refers to {reference!r}; references must begin with "#", within the schema'
        )
    try:
        target = registry.resolver().lookup(reference).contents
    except Unresolvable:
        raise ValueError(f"it refers to {reference!r}, which is not in it") from None
    if not isinstance(target, bool) and id(target) not in known:
        raise ValueError(f"it refers to {reference!r}, which is not a schema")
