"""The command in this process, a cluster's API that it applies to, and what the service exports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from graft.cli.app import app
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from services.inference.metrics import InferenceMetrics
from tests.support.stack import Result

Graft = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Graft:
    """Runs `graft ARGUMENTS` in this process, beside whatever runs in the test's event loop."""
    for name in ("GRAFT_REGISTRY", "GRAFT_TRAINER", "GRAFT_INFERENCE", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_COLOR", "1")

    def invoke(*arguments: object) -> Result:
        result = CliRunner().invoke(app, [str(one) for one in arguments])
        return Result(result.exit_code, result.stdout, result.stderr)

    return invoke


@pytest.fixture
def deploy(run: Graft) -> Callable[..., asyncio.Future[Result]]:
    """`graft [GLOBAL...] bases deploy ARGUMENTS`, in a thread; `before` stands before the command."""

    def begin(*arguments: object, before: tuple[object, ...] = ()) -> asyncio.Future[Result]:
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(None, lambda: run(*before, "bases", "deploy", *arguments))

    return begin


@pytest.fixture(scope="session")
def exported() -> set[str]:
    """Names of the service's samples, and of those that only come with requests."""
    registry = CollectorRegistry()
    metrics = InferenceMetrics(registry)
    metrics.series("bot", "1").outcomes["ok"].inc()
    text = generate_latest(registry).decode()
    families = text_string_to_metric_families(text)
    return {sample.name for family in families for sample in family.samples}
