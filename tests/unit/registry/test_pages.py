"""Page tokens are good for the listing that gave them, and nothing else passes for one."""

from __future__ import annotations

import base64
import json

import pytest
from graft.errors import GraftError, Reason

from services.registry.pages import PageTokens, page_limit

TOKENS = PageTokens(b"k" * 32)
GIVEN = TOKENS.make("L", "p", "7", "filter", "order")


def test_a_token_leads_back_to_its_key() -> None:
    assert TOKENS.read("L", "p", TOKENS.make("L", "p", "größe")) == "größe"
    assert TOKENS.read("L", "p", GIVEN, "filter", "order") == "7"
    assert TOKENS.make("L", "p", None) == ""
    assert TOKENS.read("L", "p", "") is None


def test_all_processes_of_a_catalogue_take_each_others_tokens() -> None:
    assert PageTokens(b"k" * 32).read("L", "p", GIVEN, "filter", "order") == "7"


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "====",
        "ü",
        TOKENS.make("Other", "p", "7", "filter", "order"),
        TOKENS.make("L", "other", "7", "filter", "order"),
        TOKENS.make("L", "p", "7", "other", "order"),
        TOKENS.make("L", "p", "7", "filter", "other"),
        TOKENS.make("L", "p", "7", "filter"),
        TOKENS.make("L", "p", "7", "filte", "rorder"),
        PageTokens(b"j" * 32).make("L", "p", "7", "filter", "order"),
        base64.urlsafe_b64encode(json.dumps(["L", "p", "7"]).encode()).decode(),
        base64.urlsafe_b64encode(b"[" * 10_000).decode(),
        GIVEN + "\n",
    ],
)
def test_another_token_is_refused(token: str) -> None:
    with pytest.raises(GraftError, match="was not given by L") as raised:
        TOKENS.read("L", "p", token, "filter", "order")
    assert raised.value.reason is Reason.INVALID_PAGE_TOKEN


def test_no_byte_of_a_token_can_be_changed() -> None:
    for index, character in enumerate(GIVEN):
        forged = GIVEN[:index] + ("B" if character != "B" else "C") + GIVEN[index + 1 :]
        with pytest.raises(GraftError, match="was not given"):
            TOKENS.read("L", "p", forged, "filter", "order")


def test_page_sizes_are_held_to_the_contract() -> None:
    assert [page_limit(size) for size in (0, 1, 1000, 5000)] == [100, 1, 1000, 1000]
    with pytest.raises(GraftError, match="page_size is -1"):
        page_limit(-1)
