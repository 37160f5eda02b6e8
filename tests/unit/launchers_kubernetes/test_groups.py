"""Several nodes through the launcher: an Indexed Job, a JobSet or a TrainJob, from creation to every kind of end."""

from __future__ import annotations

from typing import Any

import pytest
from graft.errors import GraftError
from graft.kubernetes.groups import GROUPS, Group, choose_group
from graft.kubernetes.pod_policy import PodPolicies, PodPolicy
from graft.trainer.v1 import nodes_pb2
from graft.trainer.v1 import trainer_service_pb2 as pb

from services.trainer.launchers.scripted import Script
from tests.support.kube_api import IdleRun, PodRun, ScriptedRun
from tests.support.kube_api.controller import is_over
from tests.support.kube_api.lab import LONG, Lab, states, unschedulable, until_said
from tests.support.kube_api.runs import Ended, Started
from tests.support.kube_api.server import JOBSET, TRAINER
from tests.support.trainer import job_request, trainer_stub, until_step
from tests.support.waiting import eventually

NODES = 3
INSTALLED = {Group.JOB: set(), Group.JOBSET: {JOBSET}, Group.TRAINJOB: {JOBSET, TRAINER}}
PLURALS = {Group.JOB: "jobs", Group.JOBSET: "jobsets", Group.TRAINJOB: "trainjobs"}


def index(started: Started) -> int:
    """Which node a pod is."""
    annotations = started.pod["metadata"]["annotations"]
    return int(annotations["batch.kubernetes.io/job-completion-index"])


def request(nodes: int = NODES, nodes_as: int = 0, **more: Any) -> pb.CreateJobRequest:
    made = job_request(**more)
    made.spec.resources.nodes = nodes
    made.spec.resources.nodes_as = nodes_as  # type: ignore[assignment]
    return made


@pytest.fixture(params=GROUPS)
def group(request: pytest.FixtureRequest, lab: Lab) -> Group:
    """Each of them, where it is installed and the operator wants it. Only the first node talks to the trainer."""
    group: Group = request.param
    lab.cluster.server.installed |= INSTALLED[group]
    lab.policies = PodPolicies(PodPolicy(gpus_per_slot=0, keep_s=600, several_nodes=group.value))

    def make(started: Started) -> PodRun:
        return ScriptedRun(started, lab.script) if index(started) == 0 else IdleRun(started)

    lab.make = make
    return group


def owners(lab: Lab, group: Group) -> list[Any]:
    """What runs attempts."""
    return [
        one
        for one in lab.cluster.store.all(PLURALS[group])
        if not one["metadata"].get("ownerReferences")
    ]


async def until_pods(lab: Lab, count: int) -> None:
    await eventually(lambda: len(lab.cluster.kubelet.runs) == count, f"{count} pods")


def idle(lab: Lab, node: int) -> IdleRun:
    """What the newest pod of a node runs."""
    for name, run in reversed(lab.cluster.kubelet.runs.items()):
        if f"-{node}-" in name[-8:]:
            assert isinstance(run, IdleRun)
            return run
    raise AssertionError(f"no pod of node {node}")


class TestEachGroup:
    async def test_runs_one_pod_per_node_and_succeeds_with_the_first(
        self, lab: Lab, group: Group
    ) -> None:
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(request())
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"
            assert (await stub.GetJob(pb.GetJobRequest(name=job.name))).attempt == 1
            assert len(lab.cluster.controller.ran) == NODES
            assert len(lab.cluster.store.created[PLURALS[group]]) == 1

    async def test_ends_with_the_cause_of_the_node_that_failed(
        self, lab: Lab, group: Group
    ) -> None:
        lab.script = LONG
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(request())
            await until_pods(lab, NODES)
            await until_step(stub, job.name, 2)
            idle(lab, 2).end(Ended(65))
            assert (await states(stub, job.name))[-1] == "FAILED"
            failed = await stub.GetJob(pb.GetJobRequest(name=job.name))
            assert (failed.failure_cause, failed.attempt) == (2, 1)

    async def test_goes_on_with_all_nodes_when_one_is_drained(self, lab: Lab, group: Group) -> None:
        lab.script = LONG
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(request(max_restarts=0))
            await until_pods(lab, NODES)
            await until_step(stub, job.name, 2)
            lab.script = Script(steps=5)
            pod = next(one for _, one in lab.cluster.controller.ran if "-1-" in one[-8:])
            lab.cluster.kubelet.evict(pod, "graft")
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"
            assert (await stub.GetJob(pb.GetJobRequest(name=job.name))).attempt == 2
            assert len(lab.cluster.controller.ran) == 2 * NODES

    async def test_goes_on_when_somebody_deletes_it(self, lab: Lab, group: Group) -> None:
        lab.script = LONG
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(request(max_restarts=0))
            await until_pods(lab, NODES)
            await until_step(stub, job.name, 2)
            lab.script = Script(steps=5)
            (made,) = owners(lab, group)
            lab.cluster.store.remove(PLURALS[group], "graft", made["metadata"]["name"])
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"
            assert (await stub.GetJob(pb.GetJobRequest(name=job.name))).attempt == 2

    async def test_is_cancelled_with_all_its_pods(self, lab: Lab, group: Group) -> None:
        lab.script = LONG
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(request())
            await until_pods(lab, NODES)
            await until_step(stub, job.name, 2)
            await stub.CancelJob(pb.CancelJobRequest(name=job.name))
            assert (await states(stub, job.name))[-1] == "CANCELLED"
            await eventually(lambda: all(is_over(pod) for pod in lab.cluster.pods()))

    async def test_that_waits_is_cancelled_without_a_trace(self, lab: Lab, group: Group) -> None:
        lab.cluster.kubelet.hinder = lambda _pod: unschedulable("0/3 nodes are available")
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(request())
            await until_said(stub, job.name, "No node")
            await stub.CancelJob(pb.CancelJobRequest(name=job.name))
            assert (await states(stub, job.name))[-1] == "CANCELLED"
            await eventually(lambda: not owners(lab, group))
            for plural in ("secrets", "configmaps", "services", "trainingruntimes", "jobs"):
                assert not lab.cluster.store.all(plural), plural

    async def test_is_found_by_the_next_trainer_and_not_run_again(
        self, lab: Lab, group: Group
    ) -> None:
        lab.script = Script(steps=100, step_s=0.02)
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(request())
            await until_pods(lab, NODES)
            await until_step(stub, job.name, 3)
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"
            assert (await stub.GetJob(pb.GetJobRequest(name=job.name))).attempt == 1
        assert len(lab.cluster.controller.ran) == NODES

    async def test_that_ended_while_nobody_looked_is_known_without_its_pods(
        self, lab: Lab, group: Group
    ) -> None:
        lab.make = IdleRun
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(request())
            await until_pods(lab, NODES)
        idle(lab, 1).end(Ended(65))
        (made,) = owners(lab, group)

        def over() -> bool:
            found = lab.cluster.store.get(PLURALS[group], "graft", made["metadata"]["name"])
            conditions = found.get("status", {}).get("conditions", [])
            return any(one["type"] == "Failed" for one in conditions)

        await eventually(over)
        for pod in lab.cluster.pods():
            lab.cluster.store.remove("pods", "graft", pod["metadata"]["name"])
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            assert (await states(stub, job.name))[-1] == "FAILED"
            found = await stub.GetJob(pb.GetJobRequest(name=job.name))
            assert (found.failure_cause, found.attempt) == (2, 1)
        assert len(lab.cluster.controller.ran) == NODES

    async def test_says_why_it_waits(self, lab: Lab, group: Group) -> None:
        lab.cluster.kubelet.hinder = lambda _pod: unschedulable(
            "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
        )
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(request())
            await until_said(stub, job.name, "No node has enough GPUs (nvidia.com/gpu) free")
            lab.cluster.kubelet.hinder = lambda _pod: None
            lab.cluster.kubelet.look_again()
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"

    async def test_waits_in_a_queue_and_starts_when_that_lets_it(
        self, lab: Lab, group: Group
    ) -> None:
        policy = PodPolicy(gpus_per_slot=0, queue="team-a", several_nodes=group.value)
        lab.policies = PodPolicies(policy)
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(request())
            await until_said(stub, job.name, "Waits in the queue team-a of Kueue")
            assert not lab.cluster.pods()
            (made,) = owners(lab, group)
            started = {**made, "spec": {**made["spec"], "suspend": False}}
            lab.cluster.store.update(PLURALS[group], started)
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"

    async def test_leaves_nothing_behind_but_what_is_kept_for_a_while(
        self, lab: Lab, group: Group
    ) -> None:
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(request())
            await states(stub, job.name)
            if group is Group.TRAINJOB:
                # A TrainJob has no time to go: it goes at once.
                await eventually(lambda: not owners(lab, group))
                assert not lab.cluster.store.all("trainingruntimes")
                return
            await eventually(
                lambda: owners(lab, group)[0]["spec"].get("ttlSecondsAfterFinished") == 600
            )


class TestTheChoice:
    def test_the_spec_chooses_where_the_operator_does_not(self) -> None:
        assert choose_group("auto", "", 2, GROUPS) is Group.JOBSET
        assert choose_group("auto", "", 2, [Group.JOB]) is Group.JOB
        assert choose_group("auto", "", 2) is Group.JOB
        assert choose_group("auto", "", 1, GROUPS) is Group.JOB
        assert choose_group("auto", "trainjob", 2, GROUPS) is Group.TRAINJOB
        assert choose_group("job", "", 2, GROUPS) is Group.JOB
        assert choose_group("jobset", "jobset", 2) is Group.JOBSET

    def test_a_spec_that_wants_another_than_the_operator_is_refused(self) -> None:
        with pytest.raises(GraftError, match=r"resources\.nodes_as is trainjob"):
            choose_group("job", "trainjob", 2, GROUPS)

    def test_what_is_not_installed_is_refused_with_what_is(self) -> None:
        with pytest.raises(GraftError, match=r"to be a TrainJob.*job, jobset \("):
            choose_group("auto", "trainjob", 2, [Group.JOB, Group.JOBSET])


class TestWhatTheClusterHas:
    async def made(self, lab: Lab, nodes_as: int = 0) -> str:
        """The group that a job gets; or why it failed."""
        lab.make = IdleRun
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(request(nodes_as=nodes_as))

            async def decided() -> bool:
                found = await stub.GetJob(pb.GetJobRequest(name=job.name))
                return bool(lab.cluster.kubelet.runs) or found.state == pb.JOB_STATE_FAILED

            await eventually(decided)
            created = [plural for plural in PLURALS.values() if plural in lab.cluster.store.created]
            if created:
                return created[-1]
            return (await stub.GetJob(pb.GetJobRequest(name=job.name))).message

    async def test_is_found_by_discovery(self, lab: Lab) -> None:
        assert await self.made(lab) == "jobs"

    async def test_a_jobset_is_taken_where_there_is_one(self, lab: Lab) -> None:
        lab.cluster.server.installed |= {JOBSET, TRAINER}
        assert await self.made(lab) == "jobsets"

    async def test_a_train_job_is_taken_where_the_spec_says_so(self, lab: Lab) -> None:
        lab.cluster.server.installed |= {JOBSET, TRAINER}
        assert await self.made(lab, nodes_pb2.NODES_AS_TRAINJOB) == "trainjobs"

    async def test_what_the_trainer_may_not_use_is_as_if_it_were_not_there(self, lab: Lab) -> None:
        lab.cluster.server.installed |= {JOBSET}
        lab.cluster.server.forbidden |= {"jobsets"}
        assert await self.made(lab) == "jobs"

    async def test_what_is_wanted_and_not_there_fails_the_job_in_words(self, lab: Lab) -> None:
        said = await self.made(lab, nodes_pb2.NODES_AS_TRAINJOB)
        assert "is to be a TrainJob, which the cluster does not have" in said
        assert "Install it" in said


class TestARuntime:
    @pytest.fixture(autouse=True)
    def installed(self, lab: Lab) -> None:
        lab.cluster.server.installed |= {JOBSET, TRAINER}
        lab.policies = PodPolicies(PodPolicy(gpus_per_slot=0, several_nodes="trainjob"))
        lab.make = IdleRun

    async def test_that_the_webhook_has_not_seen_yet_is_waited_for(self, lab: Lab) -> None:
        hidden: list[bool] = []
        check = lab.cluster.server._check_runtime

        def late(kind: str, namespace: str, one: Any) -> None:
            if kind == "TrainJob" and len(hidden) < 2:
                hidden.append(True)
                one = {"spec": {"runtimeRef": {"name": "unseen"}}}
            check(kind, namespace, one)

        lab.cluster.server._check_runtime = late  # type: ignore[method-assign]
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            await stub.CreateJob(request())
            await until_pods(lab, NODES)
        assert len(hidden) == 2

    async def test_goes_with_its_train_job(self, lab: Lab) -> None:
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            await stub.CreateJob(request())
            await until_pods(lab, NODES)
            (runtime,) = lab.cluster.store.all("trainingruntimes")
            (made,) = lab.cluster.store.all("trainjobs")
            await eventually(
                lambda: (
                    "ownerReferences" in lab.cluster.store.all("trainingruntimes")[0]["metadata"]
                )
            )
            (runtime,) = lab.cluster.store.all("trainingruntimes")
            assert runtime["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]

    async def test_of_a_train_job_that_never_came_is_removed(self, lab: Lab) -> None:
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            await stub.CreateJob(request())
            await until_pods(lab, NODES)
            (runtime,) = lab.cluster.store.all("trainingruntimes")
        lost = {**runtime["metadata"], "name": "graft-lost-0123456789-1", "ownerReferences": []}
        lab.cluster.store.create("trainingruntimes", "graft", {**runtime, "metadata": lost})
        async with lab.trainer():
            await eventually(lambda: len(lab.cluster.store.all("trainingruntimes")) == 1)
