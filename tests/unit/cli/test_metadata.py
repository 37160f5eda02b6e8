"""Finding, labelling and describing, as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from graft.cli.metadata import changes_of, labels_text
from graft.errors import GraftError

from tests.support.models import make_adapter
from tests.unit.cli.conftest import Graft


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> list[Path]:
    root = tmp_path_factory.mktemp("found")
    return [make_adapter(root / str(seed), tiny_base, seed=seed) for seed in (71, 72)]


@pytest.fixture
def found(graft: Graft, tiny_base: Path, folders: list[Path]) -> str:
    """An adapter with two versions; what an earlier test said of it is taken back."""
    for folder in folders:
        pushed = graft("adapters", "push", "found", folder, "--base", tiny_base)
        assert pushed.code == 0, pushed.err
    for name in ("found", "found:1", "found:2"):
        assert graft("adapters", "label", name, "team-", "stage-", "note-").code == 0
    return "found"


def test_labels_are_set_removed_shown_and_found(graft: Graft, found: str) -> None:
    label = graft("adapters", "label", found, "team=a", "note=x=y")
    assert (label.code, "note=x=y team=a" in label.out) == (0, True), label.err
    assert graft("adapters", "label", found, "note-", "--json").json()["labels"] == {"team": "a"}
    assert "team=a" in graft("adapters", "label", found).out
    listed = graft("adapters", "list", "--filter", "labels.team = a")
    assert (found in listed.out, "team=a" in listed.out) == (True, True)
    assert "No adapter is like that." in graft("adapters", "list", "--filter", "labels:zzz").out

    assert graft("adapters", "label", f"{found}:2", "stage=done").code == 0
    by_label = graft("adapters", "versions", found, "--filter", "labels:stage", "--json").json()
    assert [one["number"] for one in by_label] == [2]
    assert "stage=done" in graft("adapters", "show", f"{found}:2").out
    everywhere = graft("adapters", "versions", "--filter", "labels.stage = done").out
    assert f"{found}:2" in everywhere


def test_versions_are_sorted_and_cut(graft: Graft, found: str) -> None:
    ordered = graft("adapters", "versions", found, "--sort", "number", "--json").json()
    assert [one["number"] for one in ordered] == [1, 2]
    newest = graft("adapters", "versions", found, "--limit", 1, "--json").json()
    assert [one["number"] for one in newest] == [2]
    assert "EVAL_LOSS" in graft("adapters", "versions", found, "--sort", "metrics.eval_loss").out


def test_a_description_is_given_and_taken_back(graft: Graft, found: str) -> None:
    said = graft("adapters", "describe", f"{found}:1", "Answers in rhymes.")
    assert (said.code, "Answers in rhymes." in said.out) == (0, True), said.err
    assert "Answers in rhymes." in graft("adapters", "show", f"{found}:1").out
    rhymes = graft("adapters", "versions", found, "--filter", "description : RHYME", "--json")
    assert [one["number"] for one in rhymes.json()] == [1]
    assert "(no description)" in graft("adapters", "describe", f"{found}:1", "").out


def test_bases_are_labelled_and_found_too(graft: Graft, found: str, tiny_base: Path) -> None:
    name = graft("bases", "list", "--json").json()[0]["name"]
    short = name.rpartition("/")[2]
    for written in (short, name):
        assert graft("bases", "label", written, "family=test").code == 0
    assert "family=test" in graft("bases", "list", "--filter", "labels.family = test").out
    assert graft("bases", "label", short, "family-", "--json").json()["labels"] == {}


def test_a_wrong_filter_is_told_with_its_place(graft: Graft, found: str) -> None:
    wrong = graft("adapters", "list", "--filter", "rnk = 8", "--json")
    error = json.loads(wrong.err)["error"]
    assert (wrong.code, error["reason"], error["metadata"]["position"]) == (
        2,
        "INVALID_FILTER",
        "1",
    )


def test_what_is_deleted_is_listed_when_asked_for(
    graft: Graft, folders: list[Path], tiny_base: Path
) -> None:
    assert graft("adapters", "push", "gone", folders[0], "--base", tiny_base).code == 0
    assert graft("adapters", "delete", "gone").code == 0
    assert "gone" not in graft("adapters", "list").out
    assert "gone (deleted)" in graft("adapters", "list", "--deleted").out
    refused = graft("adapters", "label", "gone", "team=a")
    assert (refused.code, "deleted" in refused.err) == (4, True)


def test_changes_of_labels_are_read() -> None:
    assert changes_of(["team=a", "old-", "x-=", "n=1=2"]) == {
        "team": "a",
        "old": None,
        "x-": "",
        "n": "1=2",
    }
    for wrong in (["team"], ["=a"], ["-"], ["a=1", "a-"]):
        with pytest.raises(GraftError, match="does not say what becomes of a label"):
            changes_of(wrong)
    assert labels_text({"b": "", "a": "1"}) == "a=1 b"
