"""A filter that was read: a tree of restrictions whose fields are known and whose values have types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum


class Op(StrEnum):
    """How a field and a value must compare; HAS is AIP-160's colon."""

    EQUAL = "="
    NOT_EQUAL = "!="
    LESS = "<"
    AT_MOST = "<="
    MORE = ">"
    AT_LEAST = ">="
    HAS = ":"


class FieldKind(Enum):
    """What a field holds, and by that with what it is compared."""

    TEXT = "a text"
    NUMBER = "a number"
    TIME = "a time"
    STATE = "active, deleted or purged"
    LABELS = "labels"
    METRICS = "metrics"


Fields = Mapping[str, FieldKind]


@dataclass(frozen=True, slots=True)
class Text:
    """A text to be equal to; with is_prefix a text to begin with, where "" is any."""

    text: str
    is_prefix: bool = False


class State(StrEnum):
    """Where a resource is in its life."""

    ACTIVE = "active"
    DELETED = "deleted"
    PURGED = "purged"


class Present(Enum):
    """The value of `field:*`, which anything has that has the field at all."""

    ANY = "*"


Value = Text | int | float | datetime | State | Present


@dataclass(frozen=True, slots=True)
class Restriction:
    """A field compared with a value; key is that of a label or a metric, else empty."""

    field: str
    key: str
    op: Op
    value: Value


@dataclass(frozen=True, slots=True)
class And:
    """All of them hold."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """One of them holds."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """It does not hold."""

    part: Node


Node = Restriction | And | Or | Not


def names_field(node: Node | None, field: str) -> bool:
    """Whether a filter says something of a field."""
    match node:
        case Restriction():
            return node.field == field
        case And() | Or():
            return any(names_field(part, field) for part in node.parts)
        case Not():
            return names_field(node.part, field)
        case None:
            return False
