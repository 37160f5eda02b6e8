"""`graft jobs submit --kubernetes` against an API server of the tests' own, by the real client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from graft.cli.app import app
from typer.testing import CliRunner

from tests.support.kube_api import Cluster, IdleRun, kube_cluster
from tests.support.kube_api.server import JOBSET, TRAINER
from tests.support.kube_api.store import Refused
from tests.support.waiting import eventually

Submit = Callable[..., Awaitable[tuple[int, str, str]]]
SPEC = """
base: {source: org/base}
dataset: {path: "hf://org/data"}
output: {adapter: bot}
"""


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    async with kube_cluster(tmp_path / "cluster", IdleRun) as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig))
        yield running


@pytest.fixture
def submit(tmp_path: Path) -> Submit:
    """Runs the command on a thread: the cluster lives on this one."""
    spec = tmp_path / "bot.yaml"
    spec.write_text(SPEC)

    async def run(*options: str) -> tuple[int, str, str]:
        arguments = ["jobs", "submit", str(spec), "--kubernetes", *options]
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
        return result.exit_code, result.stdout, result.stderr

    return run


async def test_the_job_is_created_with_its_config_map_and_says_how_to_follow_it(
    cluster: Cluster, submit: Submit
) -> None:
    code, out, err = await submit()
    assert code == 0, err
    assert "Job bot is created in the namespace graft." in out
    assert "kubectl -n graft logs -f job/bot" in out
    (job,) = cluster.jobs()
    (config,) = cluster.store.all("configmaps")
    (owner,) = config["metadata"]["ownerReferences"]
    assert owner["uid"] == job["metadata"]["uid"]
    assert json.loads(config["data"]["spec.json"])["output"] == {"adapter": "bot"}


async def test_scripts_get_its_name_and_an_exit_code(cluster: Cluster, submit: Submit) -> None:
    code, out, _ = await submit("--json", "--name", "once")
    assert (code, json.loads(out)) == (0, {"kind": "Job", "name": "once", "namespace": "graft"})
    code, out, err = await submit("--json", "--name", "once")
    assert (code, out) == (4, "")
    assert json.loads(err)["error"]["reason"] == "ALREADY_EXISTS"


async def test_what_the_cluster_refuses_leaves_nothing_behind(
    cluster: Cluster, submit: Submit
) -> None:
    def no_config_maps(plural: str, _one: object) -> None:
        if plural == "configmaps":
            raise Refused(403, "Forbidden", "configmaps is forbidden: User cannot create")

    cluster.server.admission = no_config_maps
    code, _, err = await submit()
    assert code == 1
    assert "configmaps is forbidden" in err
    assert "Ask for the right to create jobs" in err
    assert cluster.jobs() == []


async def test_without_a_kubeconfig_it_says_what_to_set(
    submit: Submit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    code, _, err = await submit()
    assert code == 2, err
    assert "Set KUBECONFIG" in err


async def test_a_cluster_that_is_away_is_said_so(cluster: Cluster, submit: Submit) -> None:
    cluster.write_kubeconfig("http://127.0.0.1:9")
    code, _, err = await submit()
    assert code == 5
    assert "cannot be reached" in err


@pytest.mark.parametrize(
    ("installed", "wanted", "kinds"),
    [
        (set(), "", ["Job", "Service"]),
        ({JOBSET, TRAINER}, "", ["JobSet"]),
        ({JOBSET, TRAINER}, "NODES_AS_TRAINJOB", ["TrainJob", "TrainingRuntime"]),
        ({JOBSET}, "NODES_AS_JOB", ["Job", "Service"]),
    ],
)
async def test_several_nodes_are_what_the_spec_says_and_the_cluster_has(
    cluster: Cluster,
    submit: Submit,
    tmp_path: Path,
    installed: set[str],
    wanted: str,
    kinds: list[str],
) -> None:
    cluster.server.installed |= installed
    several(tmp_path, wanted)
    code, out, err = await submit()
    assert code == 0, err
    assert f"{kinds[0]} bot is created in the namespace graft." in out
    await eventually(lambda: len(cluster.kubelet.runs) == 2, "two pods")
    (made,) = cluster.store.all(f"{kinds[0].lower()}s")
    if kinds[0] != "Job":
        assert "kubectl -n graft logs -f job/bot-node-0" in out
    for kind in [*kinds[1:], "ConfigMap"]:
        (part,) = cluster.store.all(f"{kind.lower()}s")
        assert part["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]
    for pod in cluster.pods():
        (container,) = pod["spec"]["containers"]
        told = {one["name"]: one.get("value") for one in container["env"]}
        own = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"]
        # The worker writes how it goes onto the Job that its pod is of.
        assert told["GRAFT_WORKER_KUBERNETES_JOB"] == own


async def test_what_is_not_installed_is_said_before_anything_is_created(
    cluster: Cluster, submit: Submit, tmp_path: Path
) -> None:
    several(tmp_path, "NODES_AS_TRAINJOB")
    code, _, err = await submit()
    assert code == 1, err
    assert "is to be a TrainJob, which the cluster does not have" in err
    assert not cluster.store.created


async def test_a_train_job_that_is_refused_leaves_no_runtime_behind(
    cluster: Cluster, submit: Submit, tmp_path: Path
) -> None:
    def no_train_jobs(plural: str, _one: object) -> None:
        if plural == "trainjobs":
            raise Refused(403, "Forbidden", "trainjobs is forbidden: User cannot create")

    cluster.server.installed |= {JOBSET, TRAINER}
    cluster.server.admission = no_train_jobs
    several(tmp_path, "NODES_AS_TRAINJOB")
    code, _, err = await submit()
    assert code == 1, err
    assert cluster.store.created == {"trainingruntimes": ["bot"]}
    assert not cluster.store.all("trainingruntimes")


def several(folder: Path, nodes_as: str) -> None:
    """The spec with two nodes."""
    chosen = f", nodes_as: {nodes_as}" if nodes_as else ""
    resources = f"resources: {{nodes: 2, processes_per_node: 1{chosen}}}\n"
    (folder / "bot.yaml").write_text(SPEC + resources)
