"""One running stack for all commands: real services, an engine that needs no model, scripted workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from graft.cli.app import app
from typer.testing import CliRunner

from tests.support.stack import Result, Stack, graft_up
from tests.support.trainer import stub_worker_command

Graft = Callable[..., Result]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Stack]:
    """`graft up` with the fake engine; its workers take 5 steps and train nothing."""
    home = tmp_path_factory.mktemp("stack")
    worker = json.dumps(stub_worker_command(steps=5))
    options = ("--engine", "fake", "--base", tiny_base, "--slots", "2")
    with graft_up(home, *options, GRAFT_TRAINER_WORKER_COMMAND=worker) as stack:
        yield stack


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Graft:
    """Runs `graft ARGUMENTS` in this process, with nothing started and an empty home."""
    for name in ("GRAFT_REGISTRY", "GRAFT_TRAINER", "GRAFT_INFERENCE", "GRAFT_INFERENCE_BASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_COLOR", "1")

    def invoke(*arguments: object, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(app, [str(one) for one in arguments], input=stdin)
        return Result(result.exit_code, result.stdout, result.stderr)

    return invoke


@pytest.fixture
def graft(run: Graft, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Graft:
    """Runs `graft ARGUMENTS` in this process against the stack."""
    monkeypatch.setenv("GRAFT_HOME", str(stack.home))
    return run
