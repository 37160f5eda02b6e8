"""Random schedules of faults, evictions and restarts: each attempt at most once, each job exactly one end."""

from __future__ import annotations

import asyncio
import collections
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from graft.kubernetes.pod_policy import PodPolicies, PodPolicy
from graft.trainer.v1 import trainer_service_pb2 as pb
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from services.trainer.launchers.kubernetes import KubernetesLauncher
from services.trainer.launchers.scripted import Script
from tests.support.kube_api import Cluster, Fault, ScriptedRun, kube_cluster
from tests.support.kube_api.controller import is_over
from tests.support.kube_api.preflight import NoPreflight
from tests.support.kube_api.runs import Ended, Started
from tests.support.ports import kept_port
from tests.support.trainer import ENDED, follow, job_request, start_trainer, trainer_stub

if TYPE_CHECKING:
    from graft.trainer.v1.trainer_service_pb2_grpc import TrainerServiceAsyncStub

STEPS = (
    "evict",
    "break watches",
    "compact",
    "restart the trainer",
    "delete a job",
    "suspend a job",
    "kill a pod",
    "pause a job",
    "resume a job",
    "wait",
)
JOBS = 4
Schedule = list[tuple[str, int]]


@dataclass
class Ran:
    """What ran of each job, as its pods saw it.

    Attributes:
        running: jobs whose worker runs.
        done: jobs of which a worker has ended well.
        together: jobs of which two ran at the same time.
        again: jobs of which one ran after another had ended well.
        deleted: Kubernetes' Jobs that somebody else deleted.
    """

    running: list[str] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    together: set[str] = field(default_factory=set)
    again: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)


async def disturb(cluster: Cluster, step: str, which: int, ran: Ran) -> None:
    """Does one thing to the cluster."""
    living = [pod for pod in cluster.pods() if not is_over(pod) and pod["spec"].get("nodeName")]
    jobs = cluster.jobs()
    if step == "evict" and living:
        cluster.kubelet.evict(living[which % len(living)]["metadata"]["name"], "graft")
    elif step == "kill a pod" and living:
        name = living[which % len(living)]["metadata"]["name"]
        if name in cluster.kubelet.runs:
            cluster.kubelet.runs[name].kill()
    elif step == "break watches":
        cluster.server.break_watches()
    elif step == "compact":
        cluster.store.compact()
        cluster.server.break_watches()
    elif step == "delete a job" and jobs:
        name = jobs[which % len(jobs)]["metadata"]["name"]
        ran.deleted.add(name)
        cluster.store.remove("jobs", "graft", name)
    elif step == "suspend a job" and jobs:
        name = jobs[which % len(jobs)]["metadata"]["name"]
        for value in (True, False):
            # Kueue changes the spec, and nothing of what the Job's controller has counted.
            if (job := cluster.store.find("jobs", "graft", name)) is not None:
                job["spec"]["suspend"] = value
                cluster.store.update("jobs", job)
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.03)


async def ask(stub: TrainerServiceAsyncStub, step: str, name: str) -> None:
    """Pauses a job or lets it go on, unless it has ended."""
    with suppress(grpc.aio.AioRpcError):
        if step == "pause a job":
            await stub.PauseJob(pb.PauseJobRequest(name=name))
        elif step == "resume a job":
            await stub.ResumeJob(pb.ResumeJobRequest(name=name))


class Watched(ScriptedRun):
    """A scripted pod of which is known with and after which others of its job it ran."""

    def __init__(self, at: Started, script: Script, ran: Ran) -> None:
        super().__init__(at, script)
        self._job, self._ran = at.environment["GRAFT_WORKER_JOB"], ran
        if self._job in ran.running:
            ran.together.add(self._job)
        if self._job in ran.done:
            ran.again.add(self._job)
        ran.running.append(self._job)

    async def run(self) -> Ended:
        try:
            ended = await super().run()
        finally:
            self._ran.running.remove(self._job)
        if ended.exit_code == 0:
            self._ran.done.add(self._job)
        return ended


async def live_through(folder: Path, schedule: Schedule, error_rate: float, chance: int) -> None:
    """Runs jobs while all that happens, and holds the invariants."""
    script = Script(steps=12, step_s=0.01, heartbeat_s=0.05)
    policies = PodPolicies(PodPolicy(gpus_per_slot=0))
    ran = Ran()
    async with kube_cluster(folder / "cluster", lambda at: Watched(at, script, ran)) as cluster:
        faults = cluster.faults
        faults.reseed(chance)
        faults.error_rate, faults.watch_break_rate, faults.repeat_rate = error_rate, 0.05, 0.2
        # The answer to one creation at least is lost: whoever tries it again must find what there is.
        faults.next.append(Fault(0, done=True, method="POST", plural="jobs"))
        names: list[str] = []
        listen, left = f"127.0.0.1:{kept_port()}", list(schedule)
        while True:
            launcher = KubernetesLauncher(policies, kubeconfig=cluster.kubeconfig)
            async with (
                start_trainer(
                    folder,
                    launcher=launcher,
                    preflight=NoPreflight(),
                    slots=JOBS,
                    listen=listen,
                ) as trainer,
                trainer_stub(trainer.address) as stub,
            ):
                while len(names) < JOBS:
                    names.append((await stub.CreateJob(job_request(max_restarts=100))).name)
                while left:
                    step, which = left.pop(0)
                    if step == "restart the trainer":
                        break
                    await ask(stub, step, names[which % JOBS])
                    await disturb(cluster, step, which, ran)
                else:
                    faults.error_rate = faults.watch_break_rate = 0.0
                    attempts = 0
                    for name in names:
                        await ask(stub, "resume a job", name)
                    for name in names:
                        attempts += check_events(await asyncio.wait_for(follow(stub, name), 120))
                    check_cluster(cluster, ran, attempts)
                    return


def check_events(events: list[pb.JobEvent]) -> int:
    """Exactly one end, and each attempt begins once; how many there were."""
    reached = [event.state_change.to_state for event in events if event.HasField("state_change")]
    assert [state for state in reached if state in ENDED] == [pb.JOB_STATE_SUCCEEDED]
    assert reached[-1] == pb.JOB_STATE_SUCCEEDED
    begun = [
        event.attempt
        for event in events
        if event.HasField("state_change") and event.state_change.to_state == pb.JOB_STATE_RUNNING
    ]
    assert begun == list(range(1, len(begun) + 1))
    return len(begun)


def check_cluster(cluster: Cluster, ran: Ran, attempts: int) -> None:
    """No name was created twice, but where it was deleted while its creation was still being tried."""
    created = collections.Counter(cluster.store.created["jobs"])
    assert len(created) <= attempts, "an attempt has more than one Job"
    twice = {name for name, count in created.items() if count > 1}
    assert twice <= ran.deleted
    # Of such a one, the first pod may still be ending when the second begins.
    ending = {job for job in ran.together if any(job.rpartition("/")[2] in one for one in twice)}
    assert ran.together <= ending, "two workers of one job at the same time"
    # Of one whose Job somebody deleted as it ended, nobody may have heard how: its commit finds the version.
    unheard = {
        job for job in ran.again if any(job.rpartition("/")[2] in one for one in ran.deleted)
    }
    assert ran.again <= unheard, "a job that had ended well ran again"


schedules = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 7)), max_size=8)


def run_one(schedule: Schedule, error_rate: float, chance: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(live_through(Path(folder), schedule, error_rate, chance))


@seed(20261121)
@settings(
    max_examples=4,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(schedules, st.sampled_from((0.0, 0.05, 0.2)), st.integers(0, 1000))
def test_each_job_ends_once_whatever_happens(
    schedule: Schedule, error_rate: float, chance: int
) -> None:
    run_one(schedule, error_rate, chance)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@settings(
    max_examples=300,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 7)), max_size=25),
    st.sampled_from((0.0, 0.05, 0.3)),
    st.integers(0, 10_000),
)
def test_each_job_ends_once_whatever_happens_for_long(
    schedule: Schedule, error_rate: float, chance: int
) -> None:
    run_one(schedule, error_rate, chance)
