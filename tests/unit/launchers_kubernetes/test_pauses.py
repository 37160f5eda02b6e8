"""Pauses of jobs whose workers are pods: the cluster's room is given back, another pod goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from graft.kubernetes.pod_policy import PodPolicies, PodPolicy
from graft.trainer.v1 import model_jobs_pb2
from graft.trainer.v1 import trainer_service_pb2 as pb

from services.trainer.launchers.kubernetes import KubernetesLauncher
from services.trainer.launchers.scripted import Script
from services.trainer.preflight import NoPreflight
from tests.support.kube_api import Cluster, ScriptedRun, kube_cluster
from tests.support.kube_api.controller import is_over
from tests.support.kube_api.runs import Started
from tests.support.trainer import (
    follow,
    job_request,
    start_trainer,
    trainer_stub,
    until_state,
    until_step,
)

if TYPE_CHECKING:
    from graft.trainer.v1.trainer_service_pb2_grpc import TrainerServiceAsyncStub

STEPS = 60


@asynccontextmanager
async def trainer(
    folder: Path, started: list[Started]
) -> AsyncIterator[tuple[Cluster, TrainerServiceAsyncStub]]:
    """A trainer on a cluster whose pods play a script, and keep their folders on a volume."""

    def play(at: Started) -> ScriptedRun:
        started.append(at)
        # A training's first attempt gets no further than there: a pause comes before its end.
        first = "merge" not in at.command and at.environment["GRAFT_WORKER_ATTEMPT"] == "1"
        waits_at = 5 if first else 0
        return ScriptedRun(at, Script(steps=STEPS, waits_at=waits_at, heartbeat_s=0.05))

    async with kube_cluster(folder / "cluster", play) as cluster:
        policies = PodPolicies(PodPolicy(gpus_per_slot=0))
        launcher = KubernetesLauncher(policies, kubeconfig=cluster.kubeconfig)
        async with (
            start_trainer(folder, launcher=launcher, preflight=NoPreflight()) as server,
            trainer_stub(server.address) as stub,
        ):
            yield cluster, stub


async def test_a_paused_job_has_no_pod_and_goes_on_in_another(tmp_path: Path) -> None:
    started: list[Started] = []
    async with trainer(tmp_path, started) as (cluster, stub):
        job = (await stub.CreateJob(job_request())).name
        await until_step(stub, job, 3)
        await stub.PauseJob(pb.PauseJobRequest(name=job, reason="others first"))
        await until_state(stub, job, pb.JOB_STATE_PAUSED)
        assert [pod for pod in cluster.pods() if not is_over(pod)] == []
        await stub.ResumeJob(pb.ResumeJobRequest(name=job))
        events = await follow(stub, job)
        assert events[-1].state_change.to_state == pb.JOB_STATE_SUCCEEDED
        steps = [event.metrics.step for event in events if event.HasField("metrics")]
        assert steps == list(range(1, STEPS + 1))
        assert [at.environment["GRAFT_WORKER_ATTEMPT"] for at in started] == ["1", "2"]


async def test_a_merge_is_a_pod_of_its_own_kind(tmp_path: Path) -> None:
    started: list[Started] = []
    async with trainer(tmp_path, started) as (_cluster, stub):
        spec = model_jobs_pb2.MergeSpec(version="bot:3", output_base="merged")
        request = pb.CreateJobRequest(parent="namespaces/default", merge=spec)
        job = (await stub.CreateJob(request)).name
        events = await follow(stub, job)
        assert events[-1].state_change.to_state == pb.JOB_STATE_SUCCEEDED
        (at,) = started
        assert "merge" in at.command
