"""A filter's tree as a condition of SQL; every value of a filter is a bound parameter.

A condition is never NULL, so that NOT means its opposite: what has no such label or metric differs
from every value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Double,
    String,
    Table,
    and_,
    cast,
    func,
    literal,
    not_,
    or_,
    select,
    true,
)

from services.registry.catalogue import tables
from services.registry.catalogue.rows import to_us
from services.registry.find.tree import And, Node, Not, Op, Or, Present, Restriction, State, Text

Where = ColumnElement[bool]
_TIMES = {"create_time": "create_time_us"}


@dataclass(frozen=True, slots=True)
class Found:
    """What a listing is of: its table, and how its rows are named.

    Attributes:
        table: adapters, bases or versions.
        names: what stands before a short name, for example "namespaces/default/adapters/".
        bases: what stands before a base's short name.
        namespace: the namespace's id.
    """

    table: Table
    names: str
    bases: str
    namespace: str

    @property
    def number(self) -> ColumnElement[int]:
        """The number by which its labels are kept."""
        is_version = self.table is tables.versions
        return self.table.c.number if is_version else literal(0, BigInteger)

    @property
    def owner(self) -> ColumnElement[str]:
        """The name by which its labels and metrics are kept."""
        return self.table.c.parent if self.table is tables.versions else self.table.c.name


def where(node: Node | None, found: Found) -> Where:
    """The condition of a filter."""
    match node:
        case None:
            return true()
        case And():
            return and_(*(where(part, found) for part in node.parts))
        case Or():
            return or_(*(where(part, found) for part in node.parts))
        case Not():
            return not_(where(node.part, found))
        case Restriction():
            if node.op is Op.NOT_EQUAL:
                same = Restriction(node.field, node.key, Op.EQUAL, node.value)
                return not_(_restriction(same, found))
            return _restriction(node, found)


def state_is(table: Table, state: State) -> Where:
    """Whether rows are in that state of their life."""
    deleted, purged = table.c.delete_time_us.is_not(None), table.c.purge_time_us.is_not(None)
    match state:
        case State.ACTIVE:
            return and_(not_(deleted), not_(purged))
        case State.DELETED:
            return and_(deleted, not_(purged))
        case State.PURGED:
            return purged


def _restriction(node: Restriction, found: Found) -> Where:
    match node.field, node.value:
        case "labels", _:
            return _label(node, found)
        case "metrics", _:
            return _metric(node, found)
        case (("job" | "data_digest"), _):
            return _origin(node, found)
        case "state", State() as state:
            return state_is(found.table, state)
        case "name", _:
            return _name(node, found)
        case "base", Text(text=text):
            return _text(found.table.c.base, node, "" if "/" in text else found.bases)
        case "fingerprint", _ if found.table is tables.bases:
            return _fingerprint(node)
        case _, (Text() | Present()):
            return _text(found.table.c[node.field], node)
        case _:
            return _compare(found.table.c[_TIMES.get(node.field, node.field)], node)


def _text(column: ColumnElement[str], node: Restriction, before: str = "") -> Where:
    """A text, of which `before` stands before what people write."""
    if isinstance(node.value, Present):
        return column != ""
    assert isinstance(node.value, Text), "the parser gives a text field a text"
    text = node.value.text
    if node.op is Op.HAS:
        rest = func.substr(column, len(before) + 1) if before else column
        # Both sides by the database's own idea of lower case.
        sought = _escaped(text)
        return func.lower(rest).like(func.lower("%" + sought + "%"), escape="/")
    if node.value.is_prefix:
        return _begins(column, before + text)
    return column == before + text


def _begins(column: ColumnElement[str], text: str) -> Where:
    # LIKE ignores case on SQLite, and a range depends on PostgreSQL's collation.
    return func.substr(column, 1, len(text)) == text if text else column != ""


def _escaped(text: str) -> str:
    return text.replace("/", "//").replace("%", "/%").replace("_", "/_")


def _compare(column: ColumnElement[Any], node: Restriction) -> Where:
    value: ColumnElement[Any]
    match node.value:
        case datetime():
            value = literal(to_us(node.value), BigInteger)
        case int():
            value = literal(node.value, BigInteger)
        case _:
            value = literal(node.value, Double)
    operators: Mapping[Op, Where] = {
        Op.EQUAL: column == value,
        Op.LESS: column < value,
        Op.AT_MOST: column <= value,
        Op.MORE: column > value,
        Op.AT_LEAST: column >= value,
    }
    return operators[node.op]


def _name(node: Restriction, found: Found) -> Where:
    """A short or a full name; of a version "bot:7" and ".../versions/7" too, else its parent's."""
    assert isinstance(node.value, Text | Present), "the parser gives a text field a text"
    if isinstance(node.value, Present):
        return true()
    text = node.value.text
    if found.table is tables.versions and not node.value.is_prefix and node.op is Op.EQUAL:
        parent, sign, number = text.partition("/versions/" if "/" in text else ":")
        if sign:
            return _version(found, parent, number)
    return _text(found.owner, node, "" if "/" in text and node.op is not Op.HAS else found.names)


def _version(found: Found, parent: str, number: str) -> Where:
    if not number.isascii() or not number.isdigit() or len(number) > 18:
        return not_(true())
    full = parent if "/" in parent else found.names + parent
    versions = tables.versions.c
    return and_(versions.parent == full, versions.number == int(number))


def _fingerprint(node: Restriction) -> Where:
    """A base's is kept as JSON that begins with its digest."""
    if isinstance(node.value, Present):
        return true()
    assert isinstance(node.value, Text), "the parser gives a text field a text"
    begin = '{"digest":"'
    whole = node.op is Op.EQUAL and not node.value.is_prefix
    text = begin + node.value.text.replace('"', "") + ('"' if whole else "")
    return _begins(tables.bases.c.fingerprint, text)


def _label(node: Restriction, found: Found) -> Where:
    labels = tables.resource_labels.c
    has = and_(labels.name == found.owner, labels.number == found.number, labels.label == node.key)
    if not isinstance(node.value, Present):
        has = and_(has, _text(labels.value, node))
    return select(labels.name).where(has).exists()


def _metric(node: Restriction, found: Found) -> Where:
    metrics = tables.version_metrics.c
    has = and_(
        metrics.parent == found.owner, metrics.number == found.number, metrics.metric == node.key
    )
    if not isinstance(node.value, Present):
        has = and_(has, _compare(metrics.value, node))
    return select(metrics.parent).where(has).exists()


def _origin(node: Restriction, found: Found) -> Where:
    edges, versions = tables.lineage_edges.c, tables.versions.c
    group = "jobs" if node.field == "job" else "data"
    text = node.value.text if isinstance(node.value, Text) else ""
    before = "" if text.startswith("namespaces/") else f"namespaces/{found.namespace}/{group}/"
    name = versions.parent + "/versions/" + cast(versions.number, String)
    return (
        select(edges.result)
        .where(
            edges.result == name,
            edges.relation == ("job" if node.field == "job" else "data"),
            _text(edges.source, node, before),
        )
        .exists()
    )
