"""A service that is started wrongly says what to change, and one that is asked says what can be set."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.models import REPOSITORY

SERVICES = ("registry", "trainer", "inference")


def start(service: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(REPOSITORY / "sdk"), str(REPOSITORY)])
    return subprocess.run(
        [sys.executable, "-m", f"services.{service}", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": paths, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("service", SERVICES)
def test_help_lists_every_setting_with_its_variable(service: str) -> None:
    done = start(service, "--help")
    assert done.returncode == 0
    assert f"GRAFT_{service.upper()}_DRAIN_TIMEOUT_S  (30.0)" in done.stdout


@pytest.mark.parametrize(
    ("service", "setting", "value"),
    [
        ("registry", "DRAIN_TIMEOUT_S", "soon"),
        ("registry", "DRAIN_TIMEOUT_S", "-1"),
        ("registry", "LOG_FORMAT", "xml"),
        ("registry", "METRICS_LISTEN", "nonsense"),
        ("registry", "LISTEN", "127.0.0.1:99999"),
        ("trainer", "LOG_LEVEL", "verbose"),
        ("inference", "LOG_LEVEL", "verbose"),
    ],
)
def test_a_wrong_setting_is_named_by_its_variable(service: str, setting: str, value: str) -> None:
    variable = f"GRAFT_{service.upper()}_{setting}"
    done = start(service, **{variable: value})
    assert done.returncode == 2
    assert f"{variable}: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_said_with_the_next_step(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = start(
            "registry", GRAFT_REGISTRY_LISTEN=address, GRAFT_REGISTRY_DATA_DIR=str(tmp_path)
        )
    assert done.returncode == 1
    assert f"cannot listen on {address}" in done.stderr
    assert "Traceback" not in done.stderr
