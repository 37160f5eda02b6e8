"""Every error says what to do about it: read from the source, so that none is forgotten."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import graft.errors
import pytest
from graft.errors import GraftError

from tests.support.models import REPOSITORY

_ERRORS = {
    name
    for name, kind in vars(graft.errors).items()
    if isinstance(kind, type) and issubclass(kind, GraftError)
}


def _sources() -> list[Path]:
    return sorted(
        path
        for root in ("sdk", "services")
        for path in (REPOSITORY / root).rglob("*.py")
        if "_pb2" not in path.name
    )


def _errors_without(source: str) -> Iterator[int]:
    """The lines where an error is made without a next step, or with none in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and _name(node.func) in _ERRORS:
            given = [word.value for word in node.keywords if word.arg == "next_step"]
            if not given or _is_empty(given[0]):
                yield node.lineno


def _defaults_without(source: str) -> Iterator[int]:
    """The lines of functions that make an error and whose next_step may be left out for none."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and any(_passes_on(one) for one in ast.walk(node)):
            words = node.args.args[len(node.args.args) - len(node.args.defaults) :]
            pairs = [*zip(words, node.args.defaults, strict=True)]
            pairs += [
                (word, default)
                for word, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
                if default is not None
            ]
            if any(word.arg == "next_step" and _is_empty(default) for word, default in pairs):
                yield node.lineno


def _passes_on(node: ast.AST) -> bool:
    """Whether it makes an error with its function's own next_step, as it came."""
    return (
        isinstance(node, ast.Call)
        and _name(node.func) in _ERRORS
        and any(
            word.arg == "next_step" and _name(word.value) == "next_step" for word in node.keywords
        )
    )


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_empty(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and not node.value


def test_every_error_that_is_raised_has_a_next_step() -> None:
    without = [
        f"{path.relative_to(REPOSITORY)}:{line}"
        for path in _sources()
        for find in (_errors_without, _defaults_without)
        for line in find(path.read_text("utf-8"))
    ]
    assert without == []


@pytest.mark.parametrize(
    "source",
    [
        "raise GraftError(Reason.INTERNAL, 'x')",
        "raise errors.GraftError(Reason.INTERNAL, 'x', next_step='')",
        "raise InvalidError(Reason.INVALID_SPEC, 'x', field='y')",
        "def f(a, next_step=''): return GraftError(a, 'x', next_step=next_step)",
        "def f(a, *, next_step=''): return GraftError(a, 'x', next_step=next_step)",
    ],
)
def test_an_error_without_a_next_step_is_found(source: str) -> None:
    assert [*_errors_without(source), *_defaults_without(source)] == [1]


@pytest.mark.parametrize(
    "source",
    [
        "raise GraftError(Reason.INTERNAL, 'x', next_step='Read the log.')",
        "def f(a, next_step): return GraftError(a, 'x', next_step=next_step)",
        "def f(a, next_step=''): return GraftError(a, 'x', next_step=next_step or 'Read it.')",
    ],
)
def test_an_error_with_a_next_step_is_not(source: str) -> None:
    assert [*_errors_without(source), *_defaults_without(source)] == []
