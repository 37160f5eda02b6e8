"""Who may do what at the API server: what the code calls, in one namespace, and nothing else."""

from __future__ import annotations

import re

from graft.kubernetes.kinds import JOBS

from services.trainer.launchers.kubernetes import kinds
from tests.support.k8s.render import ROOT, Object, named

LAUNCHER = ROOT / "services" / "trainer" / "launchers" / "kubernetes"
# What the launcher does with each kind: its calls are in objects.py, its watches in view.py.
TRAINER = {
    ("batch", "jobs"): {"create", "get", "list", "watch", "patch", "delete"},
    ("jobset.x-k8s.io", "jobsets"): {"create", "get", "list", "watch", "patch", "delete"},
    ("trainer.kubeflow.org", "trainjobs"): {"create", "get", "list", "watch", "delete"},
    ("trainer.kubeflow.org", "trainingruntimes"): {"create", "list", "patch", "delete"},
    ("kueue.x-k8s.io", "workloads"): {"list", "watch"},
    ("", "pods"): {"list", "watch", "delete"},
    ("", "pods/log"): {"get"},
    ("", "events"): {"list", "watch"},
    ("", "configmaps"): {"create"},
    ("", "secrets"): {"create"},
    ("", "services"): {"create"},
    ("", "persistentvolumeclaims"): {"create", "list", "patch", "delete"},
}
WORKERS = {("batch", "jobs"): {"patch"}, ("", "events"): {"create"}}


def rights(objects: list[Object], account: str) -> dict[tuple[str, str], set[str]]:
    """Verbs by API group and resource of a service account."""
    found: dict[tuple[str, str], set[str]] = {}
    for binding in named(objects, "RoleBinding").values():
        if account not in [subject["name"] for subject in binding["subjects"]]:
            continue
        for rule in named(objects, "Role")[binding["roleRef"]["name"]]["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


def test_the_trainer_may_do_what_its_launcher_does(objects: list[Object]) -> None:
    assert rights(objects, "graft-trainer") == TRAINER


def test_a_worker_may_write_on_its_job_and_nothing_else(objects: list[Object]) -> None:
    assert rights(objects, "graft-worker") == WORKERS


def test_registry_and_inference_may_do_nothing(objects: list[Object]) -> None:
    assert rights(objects, "graft-registry") == rights(objects, "graft-inference") == {}


def test_rights_end_at_the_namespace_and_name_what_they_are_for(objects: list[Object]) -> None:
    kinds = {one["kind"] for one in objects}
    assert not {"ClusterRole", "ClusterRoleBinding"} & kinds
    for role in named(objects, "Role").values():
        for rule in role["rules"]:
            assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])


def test_every_kind_that_the_launcher_knows_is_in_its_rights() -> None:
    known = {(one.root.partition("apis/")[2].partition("/")[0], one.plural) for one in kinds.ALL}
    assert JOBS in kinds.ALL
    assert known == {pair for pair in TRAINER if "/" not in pair[1]}


def test_every_method_that_the_launcher_calls_has_its_verb() -> None:
    text = "".join(path.read_text() for path in LAUNCHER.glob("*.py"))
    called = set(re.findall(r'"(GET|POST|PATCH|DELETE|PUT)"', text))
    verbs = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete", "PUT": "update"}
    assert {verbs[one] for one in called} == set().union(*TRAINER.values()) - {"list", "watch"}
