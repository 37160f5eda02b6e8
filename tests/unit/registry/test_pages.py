"""Page tokens are good for the listing that gave them, and nothing else passes for one."""

from __future__ import annotations

import base64
import json

import pytest
from graft.errors import GraftError, Reason

from services.registry.pages import make_token, page_limit, read_token


def test_a_token_leads_back_to_its_key() -> None:
    assert read_token("L", "p", make_token("L", "p", "größe")) == "größe"
    assert read_token("L", "p", make_token("L", "p", "7"), is_number=True) == "7"
    assert read_token("L", "p", make_token("L", "p", None)) is None


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "====",
        "ü",
        make_token("Other", "p", "7"),
        make_token("L", "other", "7"),
        make_token("L", "p", "seven"),
        base64.urlsafe_b64encode(json.dumps(["L", "p", 7]).encode()).decode(),
        base64.urlsafe_b64encode(b"[" * 10_000).decode(),
    ],
)
def test_another_token_is_refused(token: str) -> None:
    with pytest.raises(GraftError, match="was not given by L") as raised:
        read_token("L", "p", token, is_number=True)
    assert raised.value.reason is Reason.INVALID_PAGE_TOKEN


def test_page_sizes_are_held_to_the_contract() -> None:
    assert [page_limit(size) for size in (0, 1, 1000, 5000)] == [100, 1, 1000, 1000]
    with pytest.raises(GraftError, match="page_size is -1"):
        page_limit(-1)
