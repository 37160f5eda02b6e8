"""A worker that is killed on a cluster: none of its pods lives on, whichever deletion the cluster sees first."""

from __future__ import annotations

import asyncio
from pathlib import Path

from graft.kubernetes.pod_policy import PodPolicies

from services.trainer.launchers.base import Launch
from services.trainer.launchers.kubernetes import KubernetesLauncher
from tests.support.kube_api import Fault, IdleRun, kube_cluster
from tests.support.waiting import eventually


class StubbornRun(IdleRun):
    """Ends when it is killed, and not before."""

    def terminate(self) -> None:
        """It does not listen."""


async def test_a_pod_that_its_job_makes_after_the_kill_is_killed_too(tmp_path: Path) -> None:
    launch = Launch(
        job="namespaces/default/jobs/bot-1",
        attempt=1,
        token="0123456789abcdef",
        spec_json="{}",
        work_dir=tmp_path / "job",
        trainer_address="",
        registry_address="",
        slots=(0,),
        cpu_threads=1,
    )
    async with kube_cluster(tmp_path / "cluster", StubbornRun) as cluster:
        launcher = KubernetesLauncher(PodPolicies(), kubeconfig=cluster.kubeconfig)
        await launcher.open()
        try:
            worker = await launcher.start(launch)
            await worker.until_begun()
            # The Job is deleted when its pod has been already, so that it makes another one.
            cluster.faults.next += [Fault(503, method="DELETE", plural="jobs")] * 3
            worker.kill()
            await eventually(lambda: len(cluster.kubelet.runs) == 2, "a second pod")
            assert await asyncio.wait_for(worker.wait(), 60) == -9
            await eventually(lambda: not cluster.jobs() and not cluster.pods(), "nothing is left")
        finally:
            await launcher.close()
