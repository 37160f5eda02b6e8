"""docs/find.md says what the listings take: its examples are read, its table has every field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.registry.find.listings import ADAPTER_FIELDS, BASE_FIELDS, VERSION_FIELDS
from services.registry.find.parser import parse_filter
from services.registry.find.tree import FieldKind
from services.registry.find.values import OPS

PAGE = (Path(__file__).parents[3] / "docs/find.md").read_text()
EXAMPLES = PAGE.split("```")[1].strip().splitlines()
ROWS = re.findall(r"^\| (`.*?) \| (.*?) \| (`.*) \|$", PAGE, re.MULTILINE)
EVERYTHING = {**ADAPTER_FIELDS, **BASE_FIELDS, **VERSION_FIELDS}


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_read(example: str) -> None:
    assert parse_filter(example, VERSION_FIELDS) is not None


def test_the_table_has_every_field_with_its_comparisons() -> None:
    told = {
        field.partition(".")[0]: tuple(re.findall(r"`(\S+)`", ops))
        for fields, _, ops in ROWS
        for field in re.findall(r"`(\S+)`", fields)
    }
    # Of a metric, ":" only asks whether it is there.
    taken = {
        field: tuple(op.value for op in OPS[kind] if kind is not FieldKind.METRICS or op != ":")
        for field, kind in EVERYTHING.items()
    }
    assert told == taken


def test_the_table_says_which_listings_have_a_field() -> None:
    for fields, of, _ in ROWS:
        for field in re.findall(r"`([a-z_]+)", fields):
            for listing, word in (
                (ADAPTER_FIELDS, "adapters"),
                (BASE_FIELDS, "bases"),
                (VERSION_FIELDS, "versions"),
            ):
                assert (of.startswith("all") or word in of) == (field in listing), (field, word)
