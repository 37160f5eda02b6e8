"""The Grafana dashboard: of the form that Grafana imports, and every query has something to show."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support.promql import metrics_of, promtool

_QUERY = {
    "type": "object",
    "required": ["refId", "expr", "legendFormat", "datasource"],
    "properties": {
        "refId": {"pattern": "^[A-Z]$"},
        "expr": {"type": "string", "minLength": 3},
        "datasource": {"$ref": "#/$defs/datasource"},
    },
}
# What Grafana's dashboard model (schemaVersion 39) asks of the parts that are used here.
SCHEMA = {
    "type": "object",
    "required": ["uid", "title", "schemaVersion", "panels", "templating", "time"],
    "properties": {
        "uid": {"pattern": "^[a-zA-Z0-9_-]{1,40}$"},
        "title": {"type": "string", "minLength": 1},
        "schemaVersion": {"const": 39},
        "id": {"type": "null"},
        "panels": {
            "type": "array",
            "minItems": 1,
            "items": {"anyOf": [{"$ref": "#/$defs/row"}, {"$ref": "#/$defs/panel"}]},
        },
        "templating": {
            "type": "object",
            "properties": {
                "list": {
                    "items": {
                        "required": ["name", "type", "label"],
                        "properties": {"type": {"enum": ["datasource", "query"]}},
                    }
                }
            },
        },
    },
    "$defs": {
        "datasource": {
            "required": ["type", "uid"],
            "properties": {"type": {"const": "prometheus"}, "uid": {"const": "${datasource}"}},
        },
        "place": {
            "required": ["h", "w", "x", "y"],
            "properties": {
                "w": {"type": "integer", "minimum": 1, "maximum": 24},
                "x": {"type": "integer", "minimum": 0, "maximum": 23},
                "h": {"type": "integer", "minimum": 1},
                "y": {"type": "integer", "minimum": 0},
            },
        },
        "row": {
            "required": ["id", "type", "title", "gridPos", "panels"],
            "properties": {"type": {"const": "row"}, "gridPos": {"$ref": "#/$defs/place"}},
        },
        "panel": {
            "required": ["id", "type", "title", "description", "gridPos", "targets", "fieldConfig"],
            "properties": {
                "type": {"enum": ["timeseries", "stat"]},
                "gridPos": {"$ref": "#/$defs/place"},
                "datasource": {"$ref": "#/$defs/datasource"},
                "targets": {"type": "array", "minItems": 1, "items": _QUERY},
                "fieldConfig": {"required": ["defaults", "overrides"]},
            },
        },
    },
}


@pytest.fixture(scope="module")
def dashboard(deployed: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((deployed / "grafana/graft-inference.json").read_text())
    return found


def queries(dashboard: dict[str, Any]) -> dict[str, str]:
    """Every query by its panel's title and its letter."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }


def test_it_has_the_form_that_grafana_imports(dashboard: dict[str, Any]) -> None:
    jsonschema.validate(dashboard, SCHEMA)
    ids = Counter(panel["id"] for panel in dashboard["panels"])
    assert set(ids.values()) == {1}


def test_no_panel_lies_on_another(dashboard: dict[str, Any]) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_every_query_reads_a_metric_that_the_running_service_exports(
    dashboard: dict[str, Any], exported: set[str]
) -> None:
    missing = {
        where: absent
        for where, query in queries(dashboard).items()
        if (
            absent := {name for name in metrics_of(query) if not name.startswith("vllm:")}
            - exported
        )
    }
    assert missing == {}


def test_no_metric_of_the_service_is_left_out(
    dashboard: dict[str, Any], exported: set[str]
) -> None:
    shown = set().union(*(metrics_of(query) for query in queries(dashboard).values()))
    ours = {
        re.sub(r"_(bucket|sum|count|created)$", "", name)
        for name in exported
        if name.startswith("graft_inference_") and not name.endswith("_created")
    }
    assert ours - {re.sub(r"_bucket$", "", name) for name in shown} == set()


def test_every_variable_of_a_query_is_defined(dashboard: dict[str, Any]) -> None:
    defined = {each["name"] for each in dashboard["templating"]["list"]} | {"__rate_interval"}
    text = " ".join(queries(dashboard).values())
    assert set(re.findall(r"\$(\w+)", text)) <= defined


def test_every_query_is_one_that_prometheus_can_read(
    dashboard: dict[str, Any], tmp_path: Path
) -> None:
    rules = [
        {"record": f"query_{number}", "expr": _filled(query)}
        for number, query in enumerate(queries(dashboard).values())
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    command = [promtool(), "check", "rules", "--lint=none", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _filled(query: str) -> str:
    """As Grafana sends it."""
    return re.sub(r"\$(?!__)\w+", ".*", query.replace("$__rate_interval", "5m"))
