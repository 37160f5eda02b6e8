"""The alert rules: Prometheus can read them, they fire when they should, and on metrics that exist."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.promql import metrics_of, promtool


@pytest.fixture(scope="module")
def rules(deployed: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load((deployed / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _promtool(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [promtool(), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_alert_reads_a_metric_that_the_running_service_exports(
    rules: list[dict[str, Any]], exported: set[str]
) -> None:
    read = set().union(*(metrics_of(rule["expr"]) for rule in rules))
    ours = {name for name in read if not name.startswith("vllm:")}
    # Prometheus makes this one itself.
    assert ours - exported - {"up"} == set()


def test_every_alert_says_what_to_do_and_has_a_test(
    rules: list[dict[str, Any]], deployed: Path
) -> None:
    tests = yaml.safe_load((deployed / "alerts_test.yaml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert {rule["alert"] for rule in rules} == fired
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_prometheus_can_read_them(deployed: Path) -> None:
    done = _promtool("check", "rules", "alerts.yaml", folder=deployed)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_fires_when_it_should_and_is_silent_when_it_should_be(deployed: Path) -> None:
    done = _promtool("test", "rules", "alerts_test.yaml", folder=deployed)
    assert done.returncode == 0, done.stdout + done.stderr
