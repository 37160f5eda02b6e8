"""Chat templates by name, for bases that have none or another. One file of this folder each, with its source."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.errors import GraftError, Reason

_HEAD = re.compile(r"\{#- (.+?)\n\s*Source: (.+?)\n\s*Tools: (yes|no) -#\}", re.DOTALL)
_TURN_END = re.compile(r"\{%- set turn_end = '(.+?)' %\}")


@dataclass(frozen=True, slots=True)
class NamedTemplate:
    """A chat template of the field.

    Args:
        name: as in dataset.chat_template.
        title: whose prompt format it is.
        source: where the format is described.
        tools: whether it has a place for tools and their calls.
        text: Jinja, with {% generation %} marks around what the assistant says.
    """

    name: str
    title: str
    source: str
    tools: bool
    text: str


def template_names() -> tuple[str, ...]:
    """All names, sorted."""
    return tuple(sorted(path.stem for path in _folder().glob("*.jinja")))


def named_template(name: str) -> NamedTemplate:
    """The template of a name.

    Raises:
        GraftError: INVALID_SPEC, when there is none.
    """
    if name not in template_names():
        raise GraftError(
            Reason.INVALID_SPEC,
            f"dataset.chat_template is {name[:80]!r}, and there is no such template",
            next_step=f"Use one of {', '.join(template_names())}, or leave it out for the base's own.",
            field="dataset.chat_template",
        )
    text = (_folder() / f"{name}.jinja").read_text("utf-8")
    head = _HEAD.match(text)
    assert head is not None, name
    title, source, tools = head.groups()
    return NamedTemplate(name, title, source, tools == "yes", text)


def template_for(name: str, tokenizer: Any, end_ids: Iterable[int]) -> str:
    """The named template as a base needs it.

    Where the token that ends a turn in the format is not one that ends the base's answers, its end token
    is put behind it, after the assistant's turns: else a model that learned the format would not stop.

    Raises:
        GraftError: INVALID_SPEC, when there is no such template.
    """
    text = named_template(name).text
    end = _TURN_END.search(text)
    if end is None or tokenizer.convert_tokens_to_ids(end[1]) in set(end_ids):
        return text
    return text.replace(end[0], end[0].replace(" %}", " ~ eos_token %}"))


def _folder() -> Path:
    return Path(__file__).parent
