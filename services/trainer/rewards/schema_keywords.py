"""The keywords of JSON schemas as the rewards use them: each counts its work, and patterns are RE2's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from services.trainer.rewards.patterns import Pattern
from services.trainer.rewards.work import Work

Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


def counted_keywords(work: Work, patterns: dict[str, Pattern]) -> dict[str, Keyword]:
    """The draft's keywords, counted, and those that match patterns replaced."""
    own: dict[str, Keyword] = {
        "pattern": partial(_pattern, work, patterns),
        "patternProperties": partial(_pattern_properties, work, patterns),
        "additionalProperties": partial(_additional_properties, work, patterns),
        "uniqueItems": _unique_items,
    }
    every = {**Draft202012Validator.VALIDATORS, **own}
    return {name: partial(_counted, work, keyword) for name, keyword in every.items()}


def _counted(
    work: Work, keyword: Keyword, validator: Any, value: Any, instance: Any, schema: Any
) -> Iterator[ValidationError] | None:
    work.spend_on(value, instance)
    return keyword(validator, value, instance, schema)


def _matches(work: Work, pattern: Pattern, text: str) -> bool:
    work.spend_steps(pattern.steps(text))
    return pattern.is_in(text)


def _pattern(
    work: Work, patterns: dict[str, Pattern], _: Any, value: str, instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _matches(work, patterns[value], instance):
        yield ValidationError("does not match")


def _pattern_properties(
    work: Work, patterns: dict[str, Pattern], validator: Any, value: Any, instance: Any, _: Any
) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    for text, subschema in value.items():
        for key, inner in instance.items():
            if _matches(work, patterns[text], key):
                yield from validator.descend(inner, subschema)


def _additional_properties(
    work: Work, patterns: dict[str, Pattern], validator: Any, value: Any, instance: Any, schema: Any
) -> Iterator[ValidationError]:
    if not isinstance(instance, dict):
        return
    for key, inner in instance.items():
        if key in schema.get("properties", ()):
            continue
        if not any(_matches(work, patterns[t], key) for t in schema.get("patternProperties", ())):
            yield from validator.descend(inner, value)


def _unique_items(_: Any, value: bool, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if value and isinstance(instance, list) and len({_key(i) for i in instance}) < len(instance):
        yield ValidationError("has items that are the same")


def _key(value: Any) -> Any:
    """Something hashable that is the same for values that JSON Schema calls the same."""
    if isinstance(value, list):
        return ("list", tuple(_key(item) for item in value))
    if isinstance(value, dict):
        return ("object", frozenset((key, _key(item)) for key, item in value.items()))
    return (isinstance(value, bool), value)
