"""What `kubectl apply` gets: deploy/k8s/jobs as it is committed, and what is rendered from other specs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from graft.cli.app import app
from graft.errors import GraftError
from graft.kubernetes.job_template import Manifest
from graft.kubernetes.manual_jobs import JOB_VARIABLE, MOST_DATA_BYTES, ManualJob, render_job
from graft.kubernetes.pod_policy import PodPolicy
from graft.spec_file import spec_from_dict
from typer.testing import CliRunner

from tests.support.processes import ROOT

JOBS = ROOT / "deploy/k8s/jobs"
RENDERED = {
    "train": ("train",),
    "merge": ("merge",),
    "evaluate": ("evaluate",),
    "nightly": ("train", "--schedule", "30 2 * * *", "--time-zone", "Etc/UTC"),
}
VERSIONS = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36")
SPEC = {
    "base": {"source": "org/base"},
    "dataset": {"path": "hf://org/data"},
    "output": {"adapter": "bot"},
}


def committed(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((JOBS / name / "job.yaml").read_text("utf-8")))


def job(**changes: Any) -> ManualJob:
    spec = spec_from_dict(SPEC | changes.pop("spec", {}))
    given: dict[str, Any] = {"name": "bot", "kind": "train", "registry_address": "r:1"}
    return ManualJob(**given | {"spec": spec} | changes)


def pod_of(manifest: Manifest) -> Any:
    spec = manifest["spec"]
    spec = spec["jobTemplate"]["spec"] if manifest["kind"] == "CronJob" else spec
    return spec["template"]["spec"]


@pytest.mark.parametrize("name", RENDERED)
def test_the_committed_manifest_is_what_render_sh_writes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    kind, *options = RENDERED[name]
    result = CliRunner().invoke(
        app,
        [
            *("jobs", "render", f"deploy/k8s/jobs/specs/{name}.yaml", "--kind", kind),
            *("--name", f"pirate-{name}", "--policy", "deploy/k8s/jobs/pods.yaml", *options),
        ],
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout == (JOBS / name / "job.yaml").read_text("utf-8"), (
        "Run deploy/k8s/jobs/render.sh and look at the difference."
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid_without_a_field_too_many(version: str) -> None:
    several = render_job(job(spec={"resources": {"nodes": 2, "slots": 4}}), PodPolicy())
    every = [*several, *(one for name in RENDERED for one in committed(name))]
    for one in every:
        kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("name", RENDERED)
def test_everything_a_pod_names_is_applied_with_it_or_by_the_overlay(name: str) -> None:
    first, *others = committed(name)
    pod = pod_of(first)
    maps = {one["metadata"]["name"] for one in others if one["kind"] == "ConfigMap"}
    named = {one["configMap"]["name"] for one in pod["volumes"] if "configMap" in one}
    assert named == maps
    assert pod["serviceAccountName"] == "graft-worker"
    assert pod["priorityClassName"] == "graft-training"
    # Their network policies are for this name.
    template = first["spec"].get("jobTemplate", first)["spec"]["template"]
    assert template["metadata"]["labels"]["app.kubernetes.io/name"] == "graft-worker"
    assert template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "graft"


@pytest.mark.parametrize("name", RENDERED)
def test_its_worker_may_write_on_its_job_and_holds_no_other_right(name: str) -> None:
    pod = pod_of(committed(name)[0])
    assert pod["automountServiceAccountToken"] is True
    (container,) = pod["containers"]
    assert JOB_VARIABLE in {one["name"] for one in container["env"]}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("name", RENDERED)
def test_exit_codes_decide_what_the_job_becomes(name: str) -> None:
    first = committed(name)[0]
    spec = first["spec"].get("jobTemplate", first)["spec"]
    rules = [
        (rule["action"], (rule.get("onExitCodes") or {}).get("values"))
        for rule in spec["podFailurePolicy"]["rules"]
    ]
    assert rules == [("FailJob", [64, 65, 66, 67, 79]), ("Ignore", None), ("Ignore", [75])]
    assert "ttlSecondsAfterFinished" not in spec


@pytest.mark.parametrize("name", RENDERED)
def test_kustomize_puts_it_into_the_namespace_of_the_overlay(name: str) -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(JOBS / name)], capture_output=True, text=True, check=True
    )
    for one in yaml.safe_load_all(done.stdout):
        assert one["metadata"]["namespace"] == "graft"
        if one["kind"] != "ConfigMap":
            assert pod_of(one)["containers"][0]["image"] == "ghcr.io/graft-dev/worker:0.1.0"


def test_each_night_has_a_job_and_a_work_folder_of_its_own() -> None:
    nightly = committed("nightly")[0]
    assert (nightly["kind"], nightly["spec"]["concurrencyPolicy"]) == ("CronJob", "Forbid")
    env = pod_of(nightly)["containers"][0]["env"]
    names = [one["name"] for one in env]
    values = {one["name"]: one.get("value") for one in env}
    assert values["GRAFT_WORKER_JOB"] == f"namespaces/default/jobs/$({JOB_VARIABLE})"
    assert values["GRAFT_WORKER_DIR"] == f"/graft/work/default/$({JOB_VARIABLE})"
    # Kubernetes puts in only what stands before.
    assert names.index(JOB_VARIABLE) < names.index("GRAFT_WORKER_JOB")
    assert len(nightly["metadata"]["name"]) <= 52


def test_several_nodes_are_an_indexed_job_whose_first_pod_decides() -> None:
    made = {
        one["kind"]: one for one in render_job(job(spec={"resources": {"nodes": 3}}), PodPolicy())
    }
    spec = made["Job"]["spec"]
    assert (spec["completionMode"], spec["completions"]) == ("Indexed", 3)
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    assert made["Service"]["spec"]["clusterIP"] == "None"
    command = pod_of(made["Job"])["containers"][0]["command"]
    assert "services.trainer.run.torchrun" in command
    assert "--master-addr=bot-0.bot" in command


def test_several_accelerators_of_one_node_get_a_process_each() -> None:
    made = render_job(job(spec={"resources": {"slots": 4}}), PodPolicy())
    command = pod_of(made[0])["containers"][0]["command"]
    assert command[2:-1] == ["services.trainer.run.torchrun", "--standalone", "--nproc-per-node=4"]


@pytest.mark.parametrize("name", ["Bot", "1bot", "bot_1", "b" * 47, "bot-", ""])
def test_a_name_that_kubernetes_does_not_take_is_refused(name: str) -> None:
    with pytest.raises(GraftError, match="cannot be the name of a Job"):
        render_job(job(name=name), PodPolicy())


def test_a_schedule_of_several_nodes_is_refused() -> None:
    with pytest.raises(GraftError, match="has a schedule and 2 nodes"):
        render_job(job(schedule="@daily", spec={"resources": {"nodes": 2}}), PodPolicy())


def test_data_that_no_config_map_holds_is_refused_with_the_ways_that_work() -> None:
    with pytest.raises(GraftError, match=r"1,800,000 bytes.*hf://"):
        render_job(job(files={"data.jsonl": "x" * (2 * MOST_DATA_BYTES)}), PodPolicy())


def test_two_files_of_one_name_both_go_along(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.jsonl").write_text(f'{{"text": "{folder}"}}\n')
    sources = [{"path": str(tmp_path / folder / "data.jsonl")} for folder in ("a", "b")]
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(SPEC | {"dataset": {"sources": sources}}))
    result = CliRunner().invoke(app, ["jobs", "render", str(spec), "--name", "bot"])
    assert result.exit_code == 0, result.stderr
    data = list(yaml.safe_load_all(result.stdout))[1]["data"]
    assert data["data.jsonl"] == '{"text": "a"}\n'
    assert data["2-data.jsonl"] == '{"text": "b"}\n'
    assert "/graft/spec/2-data.jsonl" in data["spec.json"]
