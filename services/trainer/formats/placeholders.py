"""Fills in "{{name}}" in every text of an example, and counts what nobody filled in."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from services.trainer.formats.base import Content

_MARK = "{{"
_PLACEHOLDER = re.compile(r"\{\{([A-Za-z_]\w*)\}\}")
# So many rows, and such a share of all, are no accident: a text about templates has one now and then.
_MANY_ROWS, _MANY_SHARE = 3, 0.01


class Placeholders:
    """The placeholders of one set.

    Args:
        values: what each stands for, by its name.
        where: the spec's field, for notes.
    """

    def __init__(self, values: Mapping[str, str], where: str) -> None:
        self._values = dict(values)
        self._where = where
        self._rows = 0
        self._unfilled: Counter[str] = Counter()

    def fill(self, content: Content) -> Content:
        """The content with its placeholders filled in."""
        self._rows += 1
        if not any(_MARK in text for text in texts_of(content)):
            return content
        filled: Content = self._filled(content) if self._values else content
        names = {name for text in texts_of(filled) for name in _PLACEHOLDER.findall(text)}
        self._unfilled.update(names - self._values.keys())
        return filled

    def notes(self) -> Iterator[str]:
        """A sentence for each placeholder that stands in many rows as it is."""
        for name, rows in self._unfilled.most_common():
            if rows >= _MANY_ROWS and rows >= _MANY_SHARE * self._rows:
                yield (
                    f"{{{{{name}}}}} stands in {rows} of {self._rows} rows as it is: say in {self._where} "
                    f'what it is, for example {{"{name}": "..."}}.'
                )

    def _filled(self, value: Any) -> Any:
        result = value
        if isinstance(value, str):
            result = _PLACEHOLDER.sub(lambda match: self._values.get(match[1], match[0]), value)
        elif isinstance(value, dict):
            result = {key: self._filled(one) for key, one in value.items()}
        elif isinstance(value, list | tuple):
            result = type(value)(self._filled(one) for one in value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [field.name for field in dataclasses.fields(value)]
            result = type(value)(*(self._filled(getattr(value, name)) for name in names))
        return result


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a content, nested ones too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from texts_of(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts_of(one)
    elif hasattr(value, "__slots__"):
        for name in value.__slots__:
            yield from texts_of(getattr(value, name))
