"""`graft bases switch`, `served` and `cancel` against a running service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from graft.served_base import SwitchStage

from tests.support.models import make_base
from tests.support.stack import Stack
from tests.unit.cli.conftest import Graft


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("tuned") / "tuned", layers=1, seed=7)


@pytest.fixture
def endpoint(graft: Graft, stack: Stack, tiny_base: Path) -> Iterator[str]:
    """The stack's; it serves its own base again at the end."""
    yield stack.inference
    result = graft("bases", "switch", stack.inference, tiny_base, "--json")
    assert result.code == 0, result.err


def test_a_base_of_the_registry_is_served_until_it_is_switched_back(
    graft: Graft, endpoint: str, tuned: Path, tiny_base: Path
) -> None:
    assert graft("bases", "push", tuned, "--base", "tuned").code == 0
    result = graft("bases", "switch", endpoint, "bases/tuned", "--wait")
    assert result.code == 0, result.err
    assert "bases/tuned:1, beside: starting its engine" in result.out + result.err
    assert "bases/tuned:1 is served" in result.out + result.err
    served = json.loads(graft("bases", "served", endpoint, "--json").out)
    assert served["version"] == "namespaces/default/bases/tuned/versions/1"
    shown = graft("bases", "served", endpoint).out
    assert "bases/tuned:1" in shown
    assert "ready" in shown
    back = graft("bases", "switch", endpoint, tiny_base, "--strategy", "replace", "--json")
    last = json.loads(back.out)
    assert (back.code, last["stage"], last["strategy"]) == (0, SwitchStage.DONE, "replace")
    assert json.loads(graft("bases", "served", endpoint, "--json").out)["reference"] == str(
        tiny_base
    )


@pytest.mark.parametrize(
    ("base", "code", "said"),
    [
        ("tuned", 2, "neither a base of the registry nor a folder"),
        ("bases/never", 3, "bases/never"),
        ("/nowhere", 2, "config.json cannot be read"),
    ],
)
def test_what_cannot_be_served_is_said_with_a_code_and_nothing_changes(
    graft: Graft, endpoint: str, base: str, code: int, said: str
) -> None:
    before = json.loads(graft("bases", "served", endpoint, "--json").out)
    result = graft("bases", "switch", endpoint, base)
    assert result.code == code, result.err
    assert said in " ".join(result.err.split())
    after = json.loads(graft("bases", "served", endpoint, "--json").out)
    assert (after["reference"], after["ready"]) == (before["reference"], True)
    assert after["last_switch"]["stage"] == "FAILED"


def test_checking_alone_changes_nothing_and_there_is_nothing_to_cancel(
    graft: Graft, endpoint: str, tuned: Path
) -> None:
    result = graft("bases", "switch", endpoint, tuned, "--check")
    assert result.code == 0
    assert "nothing was changed" in result.out + result.err
    cancelled = graft("bases", "cancel", endpoint)
    assert cancelled.code == 2
    assert "No such switch" in cancelled.err


def test_nobody_there_ends_with_5(run: Graft) -> None:
    assert run("bases", "served", "127.0.0.1:1").code == 5
