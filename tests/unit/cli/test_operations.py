"""`graft gc`, `leases`, `quota`, and the ends of adapters, bases and versions, as somebody types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.support.stack import Result

Graft = Callable[..., Result]


def test_an_adapter_goes_comes_back_and_ends(
    graft: Graft, tiny_adapter: Path, tiny_base: Path
) -> None:
    pushed = graft("adapters", "push", "brief", tiny_adapter, "--base", tiny_base)
    assert pushed.code == 0, pushed
    early = graft("adapters", "purge", "brief", "--yes")
    assert early.code == 4
    assert "is not deleted" in early.err
    gone = graft("adapters", "delete", "brief:1", "--reason", "worse")
    assert "brief:1 is deleted; undo: graft adapters undelete brief:1" in gone.out
    assert "It stays until" in gone.out
    back = graft("adapters", "undelete", "brief:1")
    assert back.out == "brief:1 is back.\n"
    ended = json.loads(graft("adapters", "delete", "brief", "--json").out)
    assert ended["name"] == "namespaces/default/adapters/brief"
    assert ended["delete_time"] < ended["expire_time"]
    unsure = graft("adapters", "purge", "brief")
    assert unsure.code == 2
    assert "--yes" in unsure.err
    assert graft("adapters", "purge", "brief", "--yes").out == "brief is purged.\n"
    again = graft("adapters", "push", "brief", tiny_adapter, "--base", tiny_base)
    assert again.code == 4
    assert "was purged" in again.err


def test_what_is_not_there_is_said(graft: Graft) -> None:
    result = graft("bases", "delete", "none")
    assert result.code == 3
    assert "bases/none" in result.err
    assert graft("adapters", "delete", "bot:x").code == 2


def test_a_collection_says_what_goes_and_what_stays(graft: Graft) -> None:
    result = graft("gc", "--dry-run")
    assert result.code == 0, result
    assert "would be removed" in result.out
    assert "Kept:" in result.out
    assert json.loads(graft("gc", "--json").out)["removed_blobs"] == 0


def test_leases_are_listed(graft: Graft) -> None:
    assert graft("leases").code == 0
    assert isinstance(json.loads(graft("leases", "--json").out), list)


def test_a_quota_is_set_shown_and_kept(graft: Graft, tiny_adapter: Path, tiny_base: Path) -> None:
    small = ("--namespace", "small")
    result = graft("quota", "set", "small", "--max-bytes", "1KiB", "--max-versions", "5")
    assert result.code == 0, result
    assert "0 B of 1.0 KiB" in result.out
    refused = graft(*small, "adapters", "push", "bot", tiny_adapter, "--base", tiny_base)
    assert refused.code == 4
    assert "uses 0 of 1024 bytes" in refused.err
    changed = json.loads(graft("quota", "set", "small", "--max-bytes", "none", "--json").out)
    assert (changed["max_bytes"], changed["max_versions"]) == (None, 5)
    assert graft(*small, "adapters", "push", "bot", tiny_adapter, "--base", tiny_base).code == 0
    assert "1 of 5" in graft("quota", "show", "small").out
    assert "small" in graft("quota", "show", "-").out
    assert graft("quota", "set", "small", "--max-bytes", "much").code == 2
    assert graft("quota", "show", "none").code == 3
