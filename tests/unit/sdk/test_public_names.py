"""What `import graft` offers, and what it must not drag in."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tomllib
from enum import Enum
from pathlib import Path

import graft
from graft import results
from graft.version import VERSION

REPOSITORY = Path(__file__).parents[3]


def test_every_public_name_is_listed_and_nothing_else_is_a_class_of_ours() -> None:
    assert sorted(graft.__all__) == list(graft.__all__)
    public = {
        name
        for name, value in vars(graft).items()
        if isinstance(value, type) and value.__module__.startswith("graft")
    }
    assert public <= set(graft.__all__)
    assert all(hasattr(graft, name) for name in graft.__all__)


def test_results_are_frozen_values_without_protobuf() -> None:
    ours = [
        value
        for value in vars(results).values()
        if isinstance(value, type) and value.__module__ == results.__name__
    ]
    for value in ours:
        if issubclass(value, Enum | Exception):
            continue
        assert dataclasses.is_dataclass(value), value
        assert value.__dataclass_params__.frozen, value  # type: ignore[attr-defined]
        assert "pb2" not in str([field.type for field in dataclasses.fields(value)])


def test_importing_graft_loads_no_server_no_torch_and_no_cli() -> None:
    heavy = "torch transformers vllm services grpc_health.v1 grpc_reflection.v1alpha sqlalchemy rich typer"
    code = f"import sys, graft; print(*[name for name in {heavy.split()!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(REPOSITORY / "sdk")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""


def test_the_version_is_the_distributions() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == VERSION
