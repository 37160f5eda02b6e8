"""Names of the metrics in a PromQL query, and promtool, which reads such queries for real."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.support.models import REPOSITORY

_STRINGS = re.compile(r'"(?:\\.|[^"\\])*"' + r"|'(?:\\.|[^'\\])*'")
_LABELS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)")
_NAME = re.compile(r"(?<![\w.$])([a-zA-Z_:][\w:]*)\b(?!\s*\()")
_WORDS = {
    "by",
    "without",
    "and",
    "or",
    "unless",
    "bool",
    "offset",
    "inf",
    "nan",
    "sum",
    "max",
    "min",
}


def metrics_of(query: str) -> set[str]:
    """Every metric that a query reads."""
    bare = _LABELS.sub(" ", _STRINGS.sub('""', query))
    return {name for name in _NAME.findall(bare) if name.lower() not in _WORDS}


def promtool() -> str:
    """Its path; the test is skipped where it is missing."""
    local = REPOSITORY / ".tools/promtool"
    found = os.environ.get("PROMTOOL") or shutil.which("promtool")
    found = found or (str(local) if local.exists() else None)
    if found is None or not Path(found).exists():
        pytest.skip(
            "promtool is missing: `make promtool` fetches it, or `apt-get install prometheus`, "
            "or name it in PROMTOOL"
        )
    return found
