"""What is said of tests that failed, once they were run again by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.again import main

TESTS = "def test_bad():\n    assert False\n\n\ndef test_good():\n    pass\n"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two tests, in which nothing failed yet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(TESTS)
    return tmp_path


def failed(project: Path, *names: str) -> None:
    cache = project / ".pytest_cache/v/cache"
    cache.mkdir(parents=True)
    (cache / "lastfailed").write_text(json.dumps(dict.fromkeys(names, True)))


def test_one_that_passes_alone_is_named_and_no_failure(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    failed(project, "test_it.py::test_good")
    assert main() == 0
    said = capfd.readouterr().out
    assert "1 passed" in said
    assert said.endswith("pass alone: look into what they share:\n  test_it.py::test_good\n")


def test_one_that_fails_alone_too_is_a_failure(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    failed(project, "test_it.py::test_good", "test_it.py::test_bad")
    assert main() == 1
    assert "fail alone, too:\n  test_it.py::test_bad" in capfd.readouterr().out


def test_many_are_a_failure_at_once(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    failed(project, *(f"test_it.py::test_{number}" for number in range(4)))
    assert main() == 1
    assert capfd.readouterr().out == "4 tests failed: more than 3 are not run again.\n"


def test_a_run_that_ended_without_a_failed_test_is_a_failure(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main() == 1
    assert "for another reason" in capfd.readouterr().out
