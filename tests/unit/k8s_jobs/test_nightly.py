"""What the nightly CronJob starts, from its manifest to its version: a Job, its pod, and the real worker in it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.kube_api import Cluster, PodRun, ProcessRun, kube_cluster
from tests.support.kube_api.controller import condition
from tests.support.kube_api.operators import run_now
from tests.support.kube_api.runs import Started
from tests.support.processes import ROOT
from tests.support.registry import registry_calls, running_registry
from tests.support.waiting import eventually

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
MINUTE = 29_500_000


def here(started: Started, places: Mapping[str, str], told: Mapping[str, str]) -> PodRun:
    """The pod's own command, environment and spec, with its paths on this machine."""

    def moved(text: str) -> str:
        for there, place in places.items():
            text = text.replace(there, place)
        return text

    environment = {name: moved(text) for name, text in started.environment.items()}
    python, *arguments, _spec = started.command
    assert python == "python"
    at = replace(started, environment={**environment, **told}, spec=moved(started.spec))
    return ProcessRun(at, [sys.executable, *arguments])


def account(cluster: Cluster, folder: Path) -> dict[str, str]:
    """What Kubernetes gives the pod to write on its Job with."""
    folder.mkdir()
    (folder / "token").write_text(cluster.server.token)
    (folder / "namespace").write_text("graft")
    server = yaml.safe_load(cluster.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    return {
        "GRAFT_WORKER_KUBERNETES_API": server,
        "GRAFT_WORKER_KUBERNETES_ACCOUNT": str(folder),
        "GRAFT_WORKER_KUBERNETES_EVERY_S": "0.2",
        "PYTHONPATH": f"{ROOT / 'sdk'}:{ROOT}",
    }


async def test_the_job_of_a_night_trains_and_registers_a_version(tmp_path: Path) -> None:
    told: dict[str, str] = {}
    places = {"/opt/graft/": f"{ROOT}/", "/home/graft": f"{tmp_path}/home"}
    places["/graft/cache"] = f"{tmp_path}/cache"
    async with (
        running_registry(tmp_path / "registry") as registry,
        registry_calls(registry.address) as calls,
        kube_cluster(tmp_path / "cluster", lambda at: here(at, places, told)) as cluster,
    ):
        told |= account(cluster, tmp_path / "account")
        told["GRAFT_WORKER_REGISTRY"] = registry.address
        text = (ROOT / "deploy/k8s/jobs/nightly/job.yaml").read_text("utf-8")
        cron, config = (one for one in yaml.safe_load_all(text) if one)
        # A night of three steps.
        spec = json.loads(config["data"]["spec.json"])
        spec["hyperparameters"]["max_steps"] = 3
        config["data"]["spec.json"] = json.dumps(spec)
        cluster.store.create("configmaps", "graft", config)
        cron = cluster.store.create("cronjobs", "graft", cron)
        name = run_now(cluster.store, cron, MINUTE)["metadata"]["name"]

        def job() -> Any:
            return cluster.store.get("jobs", "graft", name)

        await eventually(lambda: condition(job(), "Complete") is not None, "the night's job", 600)
        version = "namespaces/default/adapters/pirate/versions/1"
        annotations = job()["metadata"]["annotations"]
        assert (annotations["graft.dev/state"], annotations["graft.dev/version"]) == (
            "succeeded",
            version,
        )
        about = [one["involvedObject"]["name"] for one in cluster.store.all("events")]
        reasons = [one["reason"] for one in cluster.store.all("events")]
        assert set(about) == {name}
        assert reasons == ["Started", "Finalizing", "Registered"]
        made = await calls.get_version(version)
        assert made.name == version
