"""The filter's language: what is read from it, and what is said of a mistake."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from graft.errors import GraftError, Reason
from hypothesis import given
from hypothesis import strategies as st

from services.registry.find.listings import ADAPTER_FIELDS, BY_NAME, MODEL_ORDERS, VERSION_FIELDS
from services.registry.find.order import Order, parse_order
from services.registry.find.parser import MAX_DEPTH, MAX_LENGTH, MAX_TERMS, parse_filter
from services.registry.find.tree import (
    And,
    Node,
    Not,
    Op,
    Or,
    Present,
    Restriction,
    State,
    Text,
    names_field,
)


def read(text: str) -> Node | None:
    """The tree of a filter of versions."""
    return parse_filter(text, VERSION_FIELDS)


def rank(number: int) -> Restriction:
    """ "rank = number"."""
    return Restriction("rank", "", Op.EQUAL, number)


def test_or_binds_closer_than_and_as_aip_160_has_it() -> None:
    tree = And((rank(1), Or((rank(2), rank(3)))))
    assert read("rank=1 AND rank=2 OR rank=3") == tree
    assert read("rank = 1 rank = 2 OR rank = 3") == tree
    assert read("(rank=1 AND rank=2) OR rank=3") == Or((And((rank(1), rank(2))), rank(3)))
    assert read("NOT rank=1") == read("-rank=1") == Not(rank(1))
    assert read("NOT(rank=1)AND(rank=2)") == And((Not(rank(1)), rank(2)))
    assert read(" ") is None


def test_values_are_of_their_fields_types() -> None:
    values = {
        "rank = 8": 8,
        "rank = -8": -8,
        "rank = '8'": 8,
        "metrics.loss < 0.5": 0.5,
        "metrics.loss < 1e-3": 0.001,
        "state = deleted": State.DELETED,
        "create_time = 2026-01-31": datetime(2026, 1, 31, tzinfo=UTC),
        "create_time = 2026-01-31T10:00:00+02:00": datetime(2026, 1, 31, 8, tzinfo=UTC),
        "name = sup*": Text("sup", is_prefix=True),
        r"name = 'sup\*'": Text("sup*"),
        r'description = "say \"no\" \\ it\'s"': Text('say "no" \\ it\'s'),
        "description = 'AND'": Text("AND"),
        "digest = sha256:ab": Text("sha256:ab"),
        "job:*": Present.ANY,
    }
    for text, value in values.items():
        found = read(text)
        assert isinstance(found, Restriction)
        assert found.value == value, text


def test_labels_and_metrics_are_named_by_their_keys() -> None:
    keys = {
        "labels.team = a": "team",
        "labels.app.io/name = a": "app.io/name",
        'labels."two words" = a': "two words",
        "labels:team": "team",
        'labels:"two words"': "two words",
        "metrics.eval/loss:*": "eval/loss",
    }
    for text, key in keys.items():
        found = read(text)
        assert isinstance(found, Restriction)
        assert found.key == key
    assert read("labels:team") == read("labels.team:*")


WRONG = {
    "rnk = 8": (1, "there are name, number, base"),
    "rank": (5, "after rank a comparison follows"),
    "rank = ": (8, "here a value should stand"),
    "rank = x": (8, "write a number"),
    "rank = 1 AND": (13, "here a field"),
    "rank = 1 AND AND rank = 2": (14, "no field 'AND'"),
    "rank : 1": (6, "rank is compared by = !="),
    "name < a": (6, "name is compared by = != :"),
    "state = gone": (9, "write active, deleted or purged"),
    "create_time > yesterday": (15, "write a time like"),
    "(rank = 1": (1, 'this "(" has no ")"'),
    "rank = 1)": (9, "should end"),
    "labels = a": (8, "write labels.NAME"),
    "labels. = a": (1, "a name follows labels."),
    "rank.x = 1": (1, "rank has no parts"),
    "metrics.loss : 0.5": (14, "compared by"),
    'name = "a*b"': (8, "at the end only"),
    'name = "a': (8, "here a value should stand"),
    "NOT NOT rank = 1": (5, "no field 'NOT'"),
    "rank = 1e999": (8, "write a number"),
    "rank = nan": (8, "write a number"),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_is_told_with_its_place_and_what_is_allowed(text: str) -> None:
    position, what = WRONG[text]
    with pytest.raises(GraftError) as raised:
        read(text)
    assert raised.value.reason is Reason.INVALID_FILTER
    assert raised.value.metadata["position"] == str(position)
    assert f"at position {position} " in raised.value.message
    assert what in raised.value.message


def test_fields_are_those_of_the_listing() -> None:
    with pytest.raises(GraftError, match="no field 'rank'; there are name, base, latest_version"):
        parse_filter("rank = 1", ADAPTER_FIELDS)


def test_a_filter_is_bounded_in_length_depth_and_terms() -> None:
    nested = "(" * MAX_DEPTH + "rank = 1" + ")" * MAX_DEPTH
    assert read(nested) == rank(1)
    many = " ".join(["rank = 1"] * MAX_TERMS)
    assert isinstance(read(many), And)
    for text in (f"({nested})", "(" * 4000, f"{many} rank = 1", "x" * (MAX_LENGTH + 1)):
        with pytest.raises(GraftError) as raised:
            read(text)
        assert raised.value.reason is Reason.INVALID_FILTER


@given(st.text(alphabet=st.sampled_from("(){}-.:=<>!\"'\\* \0ANDORTranklabesmtic18é"), max_size=60))
def test_whatever_is_sent_is_read_or_refused(text: str) -> None:
    refused: list[Reason] = []
    try:
        read(text)
    except GraftError as error:
        refused.append(error.reason)
    assert refused in ([], [Reason.INVALID_FILTER])


@given(st.text(max_size=30).filter(lambda text: "\0" not in text))
def test_any_text_can_be_asked_for_in_quotes(text: str) -> None:
    quoted = "".join("\\" + one if one in '"\\*' else one for one in text)
    assert read(f'description = "{quoted}"') == Restriction("description", "", Op.EQUAL, Text(text))


def test_a_filter_says_whether_it_speaks_of_a_field() -> None:
    assert names_field(read("rank = 1 AND NOT (state = deleted OR rank = 2)"), "state")
    assert not names_field(read("rank = 1"), "state")
    assert not names_field(None, "state")


def test_an_order_is_one_field_and_a_way() -> None:
    assert parse_order("", MODEL_ORDERS, BY_NAME) == BY_NAME
    assert parse_order("name asc", MODEL_ORDERS, BY_NAME) == BY_NAME
    assert parse_order(" create_time  desc ", MODEL_ORDERS, BY_NAME) == Order(
        "create_time", descending=True
    )
    assert parse_order("metrics.eval.loss", ("metrics",), BY_NAME) == Order("metrics", "eval.loss")
    for text in ("rank", "name, create_time", "name down", "name.x", "metrics", "metrics.", "\0"):
        with pytest.raises(GraftError, match="order_by is") as raised:
            parse_order(text, ("name", "metrics"), BY_NAME)
        assert raised.value.reason is Reason.INVALID_REQUEST
        assert "name, metrics.NAME" in raised.value.next_step
