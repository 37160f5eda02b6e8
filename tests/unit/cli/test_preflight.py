"""`graft preflight` as people and scripts see it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.stack import Result

Graft = Callable[..., Result]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preflight") / "rows.jsonl"
    rows = [
        {"prompt": f"question {number}", "completion": "yes " * (1 + number % 40)}
        for number in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_people_see_examples_a_histogram_findings_and_a_score(graft: Graft, rows: Path) -> None:
    seen = graft("preflight", rows, "--max-length", 32, "--examples", 1)
    assert seen.code == 0, seen.err
    assert "rows.jsonl, row 1" in seen.out
    assert "[[ yes" in seen.out or "[[yes" in seen.out
    assert "█" in seen.out
    assert "longer than 32 tokens" in seen.out
    assert "score" in seen.out


def test_scripts_get_the_whole_report(graft: Graft, rows: Path) -> None:
    report = graft("preflight", rows, "--json").json()
    assert report["rows"] == report["kept_rows"] == 60
    assert report["passed"] is True
    assert sum(one["rows"] for one in report["lengths"]["histogram"]) == 60
    assert {one["severity"] for one in report["findings"]} <= {"error", "warning", "note"}


def test_a_job_that_would_fail_ends_with_the_code_of_bad_data(
    graft: Graft, rows: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(rows.read_text() + '{"prompt": "and?"}\n{"prompt": 1, "completion": "x"}\n')
    seen = graft("preflight", bad)
    assert seen.code == 65
    assert "2 rows cannot be read" in seen.out
    assert "bad.jsonl, row 61" in seen.out
    assert "the job would fail" in seen.out


def test_a_file_that_is_not_there_is_named(graft: Graft, tmp_path: Path) -> None:
    seen = graft("preflight", tmp_path / "nowhere.jsonl")
    assert seen.code == 2
    assert "nowhere.jsonl" in seen.err


def test_a_spec_file_is_looked_at_as_it_would_be_trained(
    graft: Graft, rows: Path, tiny_base: Path, tmp_path: Path
) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text(
        f"base: {{source: {tiny_base}}}\ndataset: {{path: {rows}, eval_fraction: 0.1}}\n"
        "output: {adapter: bot}\n"
    )
    report = graft("preflight", "-f", spec, "--json").json()
    assert (report["kept_rows"], report["eval_rows"]) == (54, 6)
