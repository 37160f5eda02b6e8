"""docs/observability.md names what the service exports and what can be set, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.inference.config import InferenceSettings


@pytest.fixture(scope="module")
def page() -> str:
    return (Path(__file__).parents[3] / "docs/observability.md").read_text()


def test_every_metric_of_the_service_is_in_the_table_and_no_other(
    page: str, exported: set[str]
) -> None:
    table = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    named = set(re.findall(r"`(graft_inference_\w+)`", table))
    ours = {
        re.sub(r"_(bucket|sum|count)$", "", name)
        for name in exported
        if name.startswith("graft_inference_") and not name.endswith("_created")
    }
    assert named == ours


def test_every_setting_that_it_names_exists_with_that_default(page: str) -> None:
    fields = InferenceSettings.model_fields
    named = re.findall(r"GRAFT_INFERENCE_([A-Z_]+)(?:`\s*\((\d+)\))?", page)
    assert len(named) > 4
    for name, default in named:
        field = fields[name.lower()]
        if default:
            assert field.default == float(default), name
