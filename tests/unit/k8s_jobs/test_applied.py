"""The committed manifests do what they say: each is run as its pod would run it, beside a real registry."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.support.pod_processes import PodProcess
from tests.support.processes import ROOT
from tests.support.registry import registry_calls, running_registry
from tests.unit.k8s_jobs.recording_api import RecordingApi

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("default")]
PIRATE = "namespaces/default/adapters/pirate"


async def test_train_then_evaluate_then_merge_by_nothing_but_their_manifests(
    tmp_path: Path,
) -> None:
    async with (
        running_registry(tmp_path / "registry") as server,
        registry_calls(server.address) as calls,
    ):
        with RecordingApi(tmp_path / "account", "pirate-train") as api:
            code, said = await applied("train", tmp_path / "pod", server.address, api)
            assert code == 0, said
            assert api.annotations["graft.dev/version"] == f"{PIRATE}/versions/1"
            assert api.reasons == ["Started", "Finalizing", "Registered"]

        # The pod is replaced and its disk is gone: the Job has its version already.
        shutil.rmtree(tmp_path / "pod")
        with RecordingApi(tmp_path / "account", "pirate-train") as api:
            code, said = await applied("train", tmp_path / "pod", server.address, api)
            assert (code, api.annotations["graft.dev/version"]) == (0, f"{PIRATE}/versions/1"), said
            assert "nothing is trained again" in api.annotations["graft.dev/log"]

        with RecordingApi(tmp_path / "account", "pirate-evaluate") as api:
            code, said = await applied("evaluate", tmp_path / "pod-eval", server.address, api)
            assert code == 0, said
        labels = dict((await calls.get_version(f"{PIRATE}/versions/1")).labels)
        assert labels["eval.held-out.passed"] == "true", labels

        with RecordingApi(tmp_path / "account", "pirate-merge") as api:
            code, said = await applied("merge", tmp_path / "pod-merge", server.address, api)
            assert code == 0, said
            assert api.annotations["graft.dev/version"].endswith("/bases/pirate-merged/versions/1")


async def applied(name: str, folder: Path, registry: str, api: RecordingApi) -> tuple[int, str]:
    """Runs a job's pod to its end; its exit code and output."""
    text = (ROOT / "deploy/k8s/jobs" / name / "job.yaml").read_text("utf-8")
    environment = api.environment | {"GRAFT_WORKER_REGISTRY": registry}
    pod = PodProcess(list(yaml.safe_load_all(text)), folder, environment)
    code = await asyncio.to_thread(pod.wait)
    ended = json.loads(pod.end_file.read_text("utf-8"))
    assert ended.get("version") == api.annotations.get("graft.dev/version")
    return code, pod.output()
