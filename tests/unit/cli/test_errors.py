"""What goes wrong without any service: words, next steps and exit codes."""

from __future__ import annotations

import json

import pytest
from graft.cli.session import exit_code
from graft.errors import STATUS, GraftError, Reason
from graft.version import VERSION

from tests.unit.cli.conftest import Graft


def test_a_service_that_does_not_run_ends_with_5_and_says_how_to_start_it(run: Graft) -> None:
    result = run("--registry", "127.0.0.1:1", "adapters", "list")
    assert result.code == 5
    assert "the registry cannot be reached" in result.err
    assert "graft up" in result.err
    talk = run("--inference", "127.0.0.1:1", "chat", "bot", "-m", "hi")
    assert "graft up --base FOLDER" in talk.err


def test_an_error_for_a_script_is_json_on_standard_error(run: Graft) -> None:
    result = run("--registry", "127.0.0.1:1", "adapters", "list", "--json")
    assert result.out == ""
    error = json.loads(result.err)["error"]
    assert error["reason"] == "UNAVAILABLE"
    assert error["next_step"]


def test_wrong_use_ends_with_2(run: Graft) -> None:
    assert run("adapters", "promote").code == 2
    assert run("train").code == 2
    assert run("--registry", "nonsense", "adapters", "list").code == 2
    missing = run("train", "no-such.jsonl", "--base", "x", "--adapter", "bot")
    assert (missing.code, "There is no no-such.jsonl" in missing.err) == (2, True)


def test_a_fault_of_graft_itself_is_no_traceback_unless_asked_for(
    run: Graft, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("oops")

    monkeypatch.setattr("graft.cli.session.make_client", fail)
    result = run("jobs", "list")
    assert result.code == 1
    assert "graft itself failed: RuntimeError: oops" in result.err
    assert "graft --debug" in result.err


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_an_exit_code(reason: Reason) -> None:
    code = exit_code(GraftError(reason, "x"))
    expected = {
        "INVALID_ARGUMENT": 2,
        "OUT_OF_RANGE": 2,
        "NOT_FOUND": 3,
        "ABORTED": 4,
        "ALREADY_EXISTS": 4,
        "FAILED_PRECONDITION": 4,
        "UNAVAILABLE": 5,
        "RESOURCE_EXHAUSTED": 5,
        "DEADLINE_EXCEEDED": 5,
    }
    # A quota does not go away by waiting.
    wanted = 4 if reason is Reason.QUOTA_EXCEEDED else expected.get(STATUS[reason].name, 1)
    assert code == wanted


def test_the_version_for_people_and_for_scripts(run: Graft) -> None:
    assert run("version").out == f"graft {VERSION}\n"
    assert run("version", "--json").json() == {"graft": VERSION}
