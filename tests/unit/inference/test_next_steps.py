"""Every error that the service raises says what to do next."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.models import REPOSITORY

SERVICE = REPOSITORY / "services/inference"


@pytest.mark.parametrize("path", sorted(SERVICE.rglob("*.py")), ids=lambda path: path.stem)
def test_every_error_has_a_next_step(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "GraftError":
            steps = [each.value for each in node.keywords if each.arg == "next_step"]
            assert steps, f"{path.name}:{node.lineno} has none"
            assert ast.unparse(steps[0]) != "''", f"{path.name}:{node.lineno} has an empty one"
