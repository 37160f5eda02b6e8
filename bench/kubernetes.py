"""The Kubernetes launcher at size: a restart with 1,000 running jobs, and 500 jobs submitted at once.

The API server is the tests' own, with a Job controller and pods that run nothing; it speaks real HTTP to
the real client, and shares this process with the trainer, so that its own time is in the figures.
"""

from __future__ import annotations

import asyncio
import collections
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop
from graft.channel import open_channel
from graft.kubernetes.pod_policy import PodPolicies, PodPolicy
from graft.trainer.v1 import trainer_service_pb2 as pb
from graft.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub

from bench.harness import Measurement, Report
from services.trainer.launchers.kubernetes import KubernetesLauncher
from services.trainer.server import TrainerServer
from tests.support.kube_api import Cluster, IdleRun, kube_cluster
from tests.support.kube_api.preflight import NoPreflight
from tests.support.kube_api.runs import Ended
from tests.support.trainer import job_request, start_trainer
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from graft.trainer.v1.trainer_service_pb2_grpc import TrainerServiceAsyncStub

_WANTED_S, _WANTED_CALLS = 10.0, 20
_WANTED_CREATED_S = 60.0
_ERROR_RATE = 0.05
# The pods of these jobs run nothing, and are silent.
_PATIENCE_S = 3600.0
_DEADLINE_S = 240.0


def run(short: bool = False) -> Report:
    """Both figures."""
    running, submitted = (50, 25) if short else (1000, 500)
    rounds = 1 if short else 3
    report = Report(
        "kubernetes", {"running": running, "submitted": submitted, "error_rate": _ERROR_RATE}
    )
    for number in range(rounds):
        measured: dict[str, dict[str, float]] = {}
        for name, work in (
            ("restart", _restart(running)),
            ("submission", _submission(submitted, number)),
        ):
            measured[name] = dict(uvloop.run(work))
            print(f"   kubernetes: {name}: {measured[name]}", flush=True)
        report.rounds.append(measured)
    _summarize(report)
    return report


def _summarize(report: Report) -> None:
    def worst(name: str, figure: str) -> float:
        return max(measured[name][figure] for measured in report.rounds)

    time_s, calls = worst("restart", "reconciled_s"), worst("restart", "other_calls")
    created_s, twice = worst("submission", "created_s"), worst("submission", "created_twice")
    running, submitted = report.settings["running"], report.settings["submitted"]
    report.goal(
        f"restart with {running} running jobs: reconciled, s",
        f"<= {_WANTED_S:g}",
        time_s,
        time_s <= _WANTED_S,
    )
    report.goal(
        "its API calls besides one list and one watch per kind",
        f"<= {_WANTED_CALLS}",
        calls,
        calls <= _WANTED_CALLS,
    )
    report.goal(
        f"{submitted} jobs submitted at once, {_ERROR_RATE:.0%} API errors: all created, s",
        f"<= {_WANTED_CREATED_S:g}",
        created_s,
        created_s <= _WANTED_CREATED_S,
    )
    report.goal("of them created twice", "0", twice, twice == 0)


async def _restart(count: int) -> Measurement:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with kube_cluster(folder / "cluster", IdleRun) as cluster:
            async with _trainer(folder, cluster) as trainer:
                await _submit(trainer.address, count)
                await eventually(
                    lambda: len(cluster.kubelet.runs) == count, "all pods", _DEADLINE_S
                )
            cluster.server.requests.clear()
            begin_s = time.perf_counter()
            async with _trainer(folder, cluster) as trainer:
                reconciled_s = time.perf_counter() - begin_s
                counted = _counted(cluster)
                for pod in list(cluster.kubelet.runs.values()):
                    assert isinstance(pod, IdleRun)
                    pod.end(Ended(0, '{"version": "namespaces/default/adapters/bot/versions/1"}'))
                await _until_all(trainer.address, pb.JOB_STATE_SUCCEEDED, count)
            assert len(cluster.controller.ran) == count, "a job ran twice"
            return {"reconciled_s": reconciled_s, **counted}


async def _submission(count: int, seed: int) -> Measurement:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with kube_cluster(folder / "cluster", IdleRun) as cluster:
            async with _trainer(folder, cluster) as trainer:
                cluster.faults.reseed(seed)
                cluster.faults.error_rate = _ERROR_RATE
                begin_s = time.perf_counter()
                await _submit(trainer.address, count)
                submitted_s = time.perf_counter() - begin_s
                await eventually(
                    lambda: len(cluster.kubelet.runs) == count, "all pods", _DEADLINE_S
                )
                created_s = time.perf_counter() - begin_s
                cluster.faults.error_rate = 0.0
            made = collections.Counter(
                job["metadata"]["annotations"]["graft.dev/job-name"] for job in cluster.jobs()
            )
            assert len(made) == count
            return {
                "submitted_s": submitted_s,
                "created_s": created_s,
                "created_twice": sum(times > 1 for times in made.values()),
                "calls": len(cluster.server.requests),
            }


@asynccontextmanager
async def _trainer(folder: Path, cluster: Cluster) -> AsyncIterator[TrainerServer]:
    policies = PodPolicies(PodPolicy(gpus_per_slot=0))
    launcher = KubernetesLauncher(policies, kubeconfig=cluster.kubeconfig)
    async with start_trainer(
        folder,
        launcher=launcher,
        preflight=NoPreflight(),
        slots=10_000,
        worker_address="127.0.0.1:1",
        worker_start_timeout_s=_PATIENCE_S,
        worker_timeout_s=_PATIENCE_S,
    ) as trainer:
        yield trainer


def _counted(cluster: Cluster) -> Measurement:
    """Calls of one start: lists and watches of each kind apart from all others."""
    requests = collections.Counter(cluster.server.requests)
    kinds = {path for method, path in requests if method == "WATCH"}
    expected = sum(min(1, requests[method, path]) for path in kinds for method in ("GET", "WATCH"))
    return {"kinds": len(kinds), "other_calls": sum(requests.values()) - expected}


@asynccontextmanager
async def _stub(address: str) -> AsyncIterator[TrainerServiceAsyncStub]:
    async with open_channel(address) as channel:
        yield TrainerServiceStub(channel)


async def _submit(address: str, count: int) -> None:
    async with _stub(address) as stub:
        await asyncio.gather(*(stub.CreateJob(job_request()) for _ in range(count)))


async def _until_all(address: str, state: int, count: int) -> None:
    async with _stub(address) as stub, asyncio.timeout(_DEADLINE_S):
        while True:
            reached, token = 0, ""
            while True:
                page = await stub.ListJobs(
                    pb.ListJobsRequest(
                        parent="namespaces/default", page_size=1000, page_token=token
                    )
                )
                reached += sum(job.state == state for job in page.jobs)
                token = page.next_page_token
                if not token:
                    break
            if reached == count:
                return
            await asyncio.sleep(0.5)
