"""`graft cluster doctor` on clusters that lack something, over HTTP, with the real client."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from graft.cli.app import app
from graft.cli.cluster.permissions import INSTALLER_NEEDS, TRAINER_NEEDS, WORKER_NEEDS, Need
from typer.testing import CliRunner, Result

from tests.support.kube_api import Cluster
from tests.support.kube_api.facts import Facts
from tests.support.kube_api.threaded import threaded_cluster
from tests.support.models import REPOSITORY

OURS = {"app.kubernetes.io/part-of": "graft"}
CORE = "/api/v1/namespaces/graft"
APPS = "/apis/apps/v1/namespaces/graft"
ADD_ONS = (
    "metrics.k8s.io",
    "kueue.x-k8s.io",
    "jobset.x-k8s.io",
    "keda.sh",
    "cert-manager.io",
    "gateway.networking.k8s.io",
    "inference.networking.k8s.io",
    "monitoring.coreos.com",
)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of which nothing is known yet."""
    with threaded_cluster(tmp_path / "cluster") as cluster:
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Facts:
    """What a cluster with everything says, and Graft installed and well."""
    facts = running.server.facts
    facts.at.update(
        {
            "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.2"},
            "/api/v1/nodes": [_node("a"), _node("b", gpus=4)],
            "/apis/storage.k8s.io/v1/storageclasses": [
                _storage("fast", "pd.csi.storage.gke.io", default=True),
                _storage("shared", "nfs.csi.k8s.io"),
            ],
            "/apis": {"groups": [_group(name) for name in ADD_ONS]},
            "/apis/kueue.x-k8s.io/v1/namespaces/graft/localqueues": [
                {"metadata": {"name": "training"}}
            ],
            CORE: _named("graft", labels={"pod-security.kubernetes.io/enforce": "restricted"}),
            f"{CORE}/serviceaccounts/graft-trainer": _named("graft-trainer"),
            f"{CORE}/pods": [_pod("graft-registry-0")],
            f"{CORE}/persistentvolumeclaims": [],
            f"{APPS}/deployments": [_workload("graft-registry")],
            f"{APPS}/statefulsets": [_workload("graft-trainer")],
        }
    )
    return facts


@pytest.fixture
def doctor(running: Cluster, cluster: Facts) -> Any:
    """Runs the command on that cluster; extra arguments are added."""
    kubeconfig = running.kubeconfig

    def run(*arguments: str) -> Result:
        command = ["cluster", "doctor", "--kubeconfig", str(kubeconfig), *arguments]
        return CliRunner().invoke(app, command)

    return run


def _findings(result: Result) -> dict[str, Any]:
    return {one["name"]: one for one in json.loads(result.stdout)["findings"]}


def test_a_cluster_with_everything_has_nothing_to_do(doctor: Any) -> None:
    result = doctor("--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["ok"] is True
    assert [one for one in told["findings"] if one["verdict"] != "ok"] == []
    assert _findings(result)["GPUs"]["detail"] == "4 nvidia.com/gpu on 1 nodes"


def test_people_see_a_table_and_below_it_what_to_do(cluster: Facts, doctor: Any) -> None:
    cluster.at["/version"] = {"gitVersion": "v1.29.8"}
    result = doctor()
    assert result.exit_code == 1
    row = next(line for line in result.stdout.splitlines() if line.startswith("kubernetes"))
    assert row.split() == ["kubernetes", "missing", "v1.29.8"]
    assert "kubernetes: Graft needs 1.30 or later: upgrade." in result.stdout


def test_a_newer_cluster_than_was_checked_is_only_noted(cluster: Facts, doctor: Any) -> None:
    cluster.at["/version"] = {"gitVersion": "v1.37.0-gke.1"}
    result = doctor("--json")
    assert (result.exit_code, _findings(result)["kubernetes"]["verdict"]) == (0, "note")


def test_a_card_that_no_pod_can_ask_for_lacks_its_plugin(cluster: Facts, doctor: Any) -> None:
    cluster.at["/api/v1/nodes"] = [
        _node("a", labels={"feature.node.kubernetes.io/pci-10de.present": "true"})
    ]
    result = doctor("--json")
    plugin = _findings(result)["GPU plugin"]
    assert (result.exit_code, plugin["verdict"]) == (1, "missing")
    assert plugin["detail"] == "a have a GPU that no pod can ask for"
    assert "device plugin" in plugin["next_step"]


def test_a_bare_cluster_is_enough_for_the_small_overlay(cluster: Facts, doctor: Any) -> None:
    for path in [one for one in cluster.at if "/graft" in one]:
        del cluster.at[path]
    cluster.at["/api/v1/nodes"] = [_node("only")]
    cluster.at["/apis/storage.k8s.io/v1/storageclasses"] = []
    cluster.at["/apis"] = {"groups": []}
    result = doctor("--json")
    found = _findings(result)
    assert result.exit_code == 0, result.output
    assert {one["verdict"] for one in found.values()} == {"ok", "note"}
    assert found["namespace"]["next_step"].startswith("Install it: kubectl apply -k deploy/k8s")
    assert all(one["next_step"] for one in found.values() if one["verdict"] == "note" and one["name"] not in
               ("metrics server", "the trainer may run jobs"))  # fmt: skip


def test_what_the_installer_may_not_is_named_verb_by_verb(cluster: Facts, doctor: Any) -> None:
    cluster.denied |= {("", "create", "roles"), ("", "patch", "roles"), ("", "get", "pods/log")}
    result = doctor("--json")
    found = _findings(result)
    assert result.exit_code == 1
    assert (
        found["you may install"]["detail"]
        == "not allowed: create, patch on roles.rbac.authorization.k8s.io"
    )
    assert found["you may grant the Roles"]["detail"] == "not allowed: get on pods/log"


def test_a_role_of_the_trainer_that_lacks_a_verb_is_found(cluster: Facts, doctor: Any) -> None:
    account = "system:serviceaccount:graft:graft-trainer"
    cluster.denied |= {(account, "watch", "jobs")}
    result = doctor("--json")
    trainer = _findings(result)["the trainer may run jobs"]
    assert (result.exit_code, trainer["verdict"]) == (1, "missing")
    assert trainer["detail"] == "not allowed: watch on jobs.batch"


def test_an_image_that_cannot_be_pulled_names_it_and_the_missing_secret(
    cluster: Facts, doctor: Any
) -> None:
    waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
    pod = _pod("graft-registry-0", waiting=waiting)
    pod["spec"]["imagePullSecrets"] = [{"name": "registry-login"}]
    cluster.at[f"{CORE}/pods"] = [pod]
    cluster.at[f"{APPS}/deployments"] = [_workload("graft-registry", ready=0)]
    result = doctor("--json")
    found = _findings(result)
    assert result.exit_code == 1
    assert found["graft-registry"]["detail"] == "0 of 1 ready"
    assert found["pod graft-registry-0"]["detail"].startswith("main: ImagePullBackOff: Back-off")
    assert "ghcr.io/graft-dev/registry:0.1.0" in found["pod graft-registry-0"]["next_step"]
    assert found["image pull"]["detail"] == "the pull secret registry-login is not there"


def test_a_pod_that_fits_on_no_node_says_why(cluster: Facts, doctor: Any) -> None:
    pod = _pod("graft-inference-0")
    message = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
    pod["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    ]
    cluster.at[f"{CORE}/pods"] = [pod]
    assert _findings(doctor("--json"))["pod graft-inference-0"]["detail"] == (
        f"no node for it: {message}"
    )


def test_a_hundred_pods_that_crash_are_a_few_lines(cluster: Facts, doctor: Any) -> None:
    cluster.page_size = 7
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting"}
    cluster.at[f"{CORE}/pods"] = [_pod(f"worker-{n}", waiting=waiting) for n in range(100)]
    found = _findings(doctor("--json"))
    assert len([name for name in found if name.startswith("pod worker-")]) == 8
    assert found["pods"]["detail"] == "92 more like these"
    assert "logs worker-0 -c main --previous" in found["pod worker-0"]["next_step"]


def test_who_may_not_list_nodes_still_learns_the_rest(cluster: Facts, doctor: Any) -> None:
    cluster.at["/api/v1/nodes"] = 403
    cluster.at["/apis/storage.k8s.io/v1/storageclasses"] = 403
    result = doctor("--json")
    found = _findings(result)
    assert (result.exit_code, found["nodes"]["verdict"]) == (0, "note")
    assert found["graft-registry"]["verdict"] == "ok"


def test_a_claim_without_a_volume_is_found(cluster: Facts, doctor: Any) -> None:
    cluster.at[f"{CORE}/persistentvolumeclaims"] = [
        {**_named("registry-data"), "status": {"phase": "Pending"}, "spec": {}}
    ]
    found = _findings(doctor("--json"))["volume registry-data"]
    assert found["detail"] == "no volume for it yet (the default class)"


def test_a_namespace_with_a_weaker_level_says_how_to_raise_it(cluster: Facts, doctor: Any) -> None:
    cluster.at[CORE] = _named("graft", labels={})
    found = _findings(doctor("--json"))["pod security"]
    assert found["verdict"] == "note"
    assert found["next_step"].endswith(
        "kubectl label namespace graft pod-security.kubernetes.io/enforce=restricted"
    )


def test_nothing_is_changed(cluster: Facts, doctor: Any) -> None:
    doctor()
    posts = {one for one in cluster.asked if not one.startswith("GET ")}
    assert posts == {
        "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        "POST /apis/authorization.k8s.io/v1/subjectaccessreviews",
    }


def test_a_cluster_that_does_not_answer_is_unavailable(running: Cluster) -> None:
    url = "http://127.0.0.1:9"
    running.write_kubeconfig(url)
    arguments = ["cluster", "doctor", "--kubeconfig", str(running.kubeconfig)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 5
    assert f"The Kubernetes API at {url} cannot be reached" in result.stderr


def test_credentials_that_ended_and_kubeconfigs_that_are_none(
    cluster: Facts, doctor: Any, tmp_path: Path
) -> None:
    cluster.at["/version"] = 401
    result = doctor("--json")
    assert json.loads(result.stderr)["error"]["reason"] == "PERMISSION_DENIED"
    missing = ["cluster", "doctor", "--kubeconfig", str(tmp_path / "none")]
    result = CliRunner().invoke(app, missing)
    assert result.exit_code == 2
    assert "The kubeconfig cannot be used" in result.stderr
    assert "kubectl config get-contexts" in doctor("--context", "elsewhere").stderr


@pytest.fixture(scope="module")
def overlays() -> list[dict[str, Any]]:
    """The objects of both overlays, as they are applied."""
    found = []
    for overlay in ("dev", "gpu"):
        command = ["kubectl", "kustomize", f"deploy/k8s/overlays/{overlay}"]
        text = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout
        found += [one for one in yaml.safe_load_all(text) if one]
    return found


def _granted(overlays: list[dict[str, Any]], name: str) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for role in overlays
        if role["kind"] == "Role" and role["metadata"]["name"] == name
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def _asked(needs: Sequence[Need]) -> set[tuple[str, str, str]]:
    return {(need.group, need.resource, verb) for need in needs for verb in need.verbs}


def test_the_doctor_asks_for_exactly_what_is_in_the_roles(overlays: list[dict[str, Any]]) -> None:
    assert _granted(overlays, "graft-trainer") == _asked(TRAINER_NEEDS)
    assert _granted(overlays, "graft-worker") == _asked(WORKER_NEEDS)


def test_the_doctor_asks_for_every_kind_that_is_applied(overlays: list[dict[str, Any]]) -> None:
    applied = {
        (one["apiVersion"].rpartition("/")[0], one["kind"].lower().rstrip("y")) for one in overlays
    }
    asked = {(need.group, need.resource) for need in INSTALLER_NEEDS}
    for group, kind in applied:
        assert any(group == known and resource.startswith(kind) for known, resource in asked), (
            group,
            kind,
        )


def _named(name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "generation": 1, "labels": OURS if labels is None else labels}
    }


def _node(name: str, gpus: int = 0, labels: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        **_named(name, labels or {}),
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {"architecture": "amd64"},
            "allocatable": {"cpu": "8", "memory": "32Gi"}
            | ({"nvidia.com/gpu": str(gpus)} if gpus else {}),
        },
    }


def _storage(name: str, provisioner: str, default: bool = False) -> dict[str, Any]:
    annotations = {"storageclass.kubernetes.io/is-default-class": "true"} if default else {}
    return {"metadata": {"name": name, "annotations": annotations}, "provisioner": provisioner}


def _group(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "versions": [{"version": "v1beta1"}, {"version": "v1"}],
        "preferredVersion": {"version": "v1"},
    }


def _workload(name: str, ready: int = 1) -> dict[str, Any]:
    status = {"readyReplicas": ready, "updatedReplicas": 1, "observedGeneration": 1}
    return {**_named(name), "spec": {"replicas": 1}, "status": status}


def _pod(name: str, waiting: dict[str, str] | None = None) -> dict[str, Any]:
    container = {
        "name": "main",
        "image": "ghcr.io/graft-dev/registry:0.1.0",
        "state": {"waiting": waiting} if waiting else {"running": {}},
    }
    status = {"phase": "Pending" if waiting else "Running", "containerStatuses": [container]}
    return {**_named(name), "spec": {}, "status": status}
