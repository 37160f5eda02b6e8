"""`make k8s-golden`: writes what deploy/k8s renders to into files, so that a review sees what a change does."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from tests.support.k8s.render import INSTALLATIONS, K8S, ROOT, Installation, Object, render

GOLDEN = ROOT / "tests" / "unit" / "k8s" / "golden"
RULES = K8S / "components" / "monitoring" / "prometheusrule.yaml"
ALERTS = ROOT / "deploy" / "observability" / "alerts.yaml"
# A dashboard is not reviewed here.
_LONGEST = 8000


def golden_path(installation: Installation) -> Path:
    """The file of an installation."""
    return GOLDEN / f"{installation.name}.yaml"


def golden_text(objects: list[Object]) -> str:
    """Objects as they stand in a file."""
    return yaml.safe_dump_all([_shortened(one) for one in objects], sort_keys=True, width=110)


def rules_text() -> str:
    """The PrometheusRule of deploy/observability/alerts.yaml: kustomize cannot put a file into one."""
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": "graft",
            "namespace": "graft",
            "labels": {"app.kubernetes.io/part-of": "graft"},
        },
        "spec": yaml.safe_load(ALERTS.read_text()),
    }
    head = "# Made by `make k8s-golden` of deploy/observability/alerts.yaml; change that.\n"
    return head + yaml.safe_dump(rule, sort_keys=False, width=110)


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(one) for key, one in value.items()}
    if isinstance(value, str) and len(value) > _LONGEST:
        return f"sha256:{hashlib.sha256(value.encode()).hexdigest()}"
    return value


def main() -> None:
    """Writes all of them, and removes what no installation has any more."""
    RULES.write_text(rules_text())
    GOLDEN.mkdir(parents=True, exist_ok=True)
    wanted = {golden_path(one): one for one in INSTALLATIONS}
    for path in set(GOLDEN.glob("*.yaml")) - set(wanted):
        path.unlink()
    for path, installation in wanted.items():
        path.write_text(golden_text(render(installation)))
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
