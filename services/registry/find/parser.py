"""Reads a filter in AIP-160's language, of which everything is there but functions and bare words.

As there, OR binds closer than AND, and a space alone means AND.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from graft.errors import GraftError, Reason

from services.registry.find.tree import And, FieldKind, Fields, Node, Not, Op, Or, Restriction
from services.registry.find.values import OPS, WrongValueError, read_value

MAX_LENGTH, MAX_DEPTH, MAX_TERMS = 4_000, 20, 50
_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"(AND|OR|NOT)(?=[\s(]|$)")
_OP = re.compile(r"<=|>=|!=|=|<|>|:")
_FIELD = re.compile(r"[^\s()\"'=<>!:,]+")
_BARE = re.compile(r"[^\s()\"'=<>!,]+")
_QUOTED = re.compile(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Literal:
    """A value as it was written: its text, and whether a * stood at its end."""

    text: str
    is_prefix: bool
    at: int


def parse_filter(text: str, fields: Fields) -> Node | None:
    """The tree of a filter; None for an empty one.

    Args:
        text: what was asked for.
        fields: those of the listing.

    Raises:
        GraftError: INVALID_FILTER, naming the position (from 1) and what is allowed there.
    """
    if len(text) > MAX_LENGTH:
        raise GraftError(
            Reason.INVALID_FILTER,
            f"The filter has {len(text)} characters",
            next_step=f"Use at most {MAX_LENGTH}.",
        )
    return _Parser(text, fields).parse()


class _Parser:
    def __init__(self, text: str, fields: Fields) -> None:
        self._text, self._fields = text, fields
        self._at = self._terms = self._depth = 0

    def parse(self) -> Node | None:
        self._skip()
        if self._at == len(self._text):
            return None
        node = self._all()
        if self._at < len(self._text):
            raise self._error("here the filter should end or go on with AND or OR")
        return node

    def _all(self) -> Node:
        """expression = factor {[AND] factor}"""
        parts = [self._any()]
        while self._at < len(self._text) and not self._sees(")"):
            self._takes("AND")
            parts.append(self._any())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _any(self) -> Node:
        """factor = term {OR term}"""
        parts = [self._term()]
        while self._takes("OR"):
            parts.append(self._term())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _term(self) -> Node:
        if self._takes("NOT") or self._takes_sign("-"):
            return Not(self._simple())
        return self._simple()

    def _simple(self) -> Node:
        if not self._sees("("):
            return self._restriction()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"parentheses go {MAX_DEPTH} deep at most")
        opened = self._at
        self._takes_sign("(")
        node = self._all()
        if not self._takes_sign(")"):
            raise self._error('this "(" has no ")"', opened)
        self._depth -= 1
        return node

    def _restriction(self) -> Node:
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise self._error(f"a filter has {MAX_TERMS} comparisons at most")
        field, key, begin = self._field()
        kind = self._fields[field]
        found = _OP.match(self._text, self._at)
        if found is None:
            raise self._error(f"after {self._text[begin : self._at].strip()} a comparison follows")
        op, op_at = Op(found[0]), self._at
        self._move(found.end())
        keyed = kind in (FieldKind.LABELS, FieldKind.METRICS)
        if op not in OPS[kind] or (keyed and not key and op is not Op.HAS):
            raise self._error(self._allowed(field, key, kind), op_at)
        value = self._value()
        if keyed and not key:
            return self._has_key(field, value)
        if kind is FieldKind.METRICS and op is Op.HAS and value != _Literal("", True, value.at):
            raise self._error(
                f'a metric is compared by = != < <= > >=, or asked for by "{field}.X:*"', op_at
            )
        try:
            typed = read_value(kind, op, value.text, value.is_prefix)
        except WrongValueError as error:
            raise self._error(f"{field} is {kind.value}: {error}", value.at) from None
        return Restriction(field, key, op, typed)

    def _has_key(self, field: str, key: _Literal) -> Restriction:
        """`labels:team`, which is `labels.team:*`."""
        if key.is_prefix or not key.text:
            raise self._error(f"name one of the {field}", key.at)
        kind = self._fields[field]
        return Restriction(field, key.text, Op.HAS, read_value(kind, Op.HAS, "", True))

    def _allowed(self, field: str, key: str, kind: FieldKind) -> str:
        if kind in (FieldKind.LABELS, FieldKind.METRICS) and not key:
            return f"write {field}.NAME, or {field}:NAME for whether it is there"
        return f"{field} is compared by {' '.join(OPS[kind])}"

    def _field(self) -> tuple[str, str, int]:
        """Name, key and where it begins."""
        begin = self._at
        found = _FIELD.match(self._text, begin)
        if found is None:
            raise self._error("here a field, NOT or ( should stand")
        name, dot, key = found[0].partition(".")
        end = found.end()
        if dot and not key and (quoted := _QUOTED.match(self._text, end)):
            key, end = _unescape(_inside(quoted)), quoted.end()
        kind = self._fields.get(name)
        if kind is None:
            raise self._error(
                f"there is no field {name[:80]!r}; there are {', '.join(self._fields)}"
            )
        if dot and (kind not in (FieldKind.LABELS, FieldKind.METRICS) or not key):
            raise self._error(f"{name} has no parts" if key else f"a name follows {name}.")
        self._move(end)
        return name, key, begin

    def _value(self) -> _Literal:
        at = self._at
        quoted = _QUOTED.match(self._text, at)
        if quoted is not None:
            raw = _inside(quoted)
            self._move(quoted.end())
        else:
            bare = _BARE.match(self._text, at)
            if bare is None:
                raise self._error("here a value should stand; put it in quotes")
            raw = bare[0]
            self._move(bare.end())
        if "\0" in raw:
            raise self._error("a NUL character is no text", at)
        return self._literal(raw, at)

    def _literal(self, raw: str, at: int) -> _Literal:
        # A star that is not escaped: pairs of backslash and character are looked over.
        stars = [one.start() for one in re.finditer(r"\\.|\*", raw, re.DOTALL) if one[0] == "*"]
        if stars and stars != [len(raw) - 1]:
            raise self._error("a * stands at the end only; write \\* for the character", at)
        return _Literal(_unescape(raw[:-1] if stars else raw), bool(stars), at)

    def _sees(self, sign: str) -> bool:
        return self._text.startswith(sign, self._at)

    def _takes_sign(self, sign: str) -> bool:
        if not self._sees(sign):
            return False
        self._move(self._at + 1)
        return True

    def _takes(self, word: str) -> bool:
        found = _WORD.match(self._text, self._at)
        if found is None or found[1] != word:
            return False
        self._move(found.end())
        return True

    def _move(self, to: int) -> None:
        self._at = to
        self._skip()

    def _skip(self) -> None:
        found = _SPACE.match(self._text, self._at)
        assert found is not None, "it matches nothing too"
        self._at = found.end()

    def _error(self, what: str, at: int | None = None) -> GraftError:
        position = self._at if at is None else at
        near = self._text[position : position + 20] or "the end"
        return GraftError(
            Reason.INVALID_FILTER,
            f"The filter is wrong at position {position + 1} ({near!r}): {what}",
            next_step='Write it like: labels.team = "a" AND create_time > "2026-01-31".',
            position=position + 1,
            allowed=", ".join(self._fields),
        )


def _inside(quoted: re.Match[str]) -> str:
    return str(quoted[1] if quoted[1] is not None else quoted[2])


def _unescape(text: str) -> str:
    return _ESCAPE.sub(r"\1", text)
