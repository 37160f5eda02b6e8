"""Checkpoints on a volume of each job's own: they are there on another node, and go when the job is over."""

from __future__ import annotations

import re

import pytest
from graft.kubernetes.pod_policy import PodPolicies, PodPolicy, WorkStorage
from graft.trainer.v1 import trainer_service_pb2 as pb

from services.trainer.launchers.scripted import Script
from tests.support.kube_api import IdleRun
from tests.support.kube_api.lab import LONG, Lab, states, until_said
from tests.support.kube_api.store import Object
from tests.support.trainer import follow, job_request, trainer_stub, until_step
from tests.support.waiting import eventually

CLAIMS = "persistentvolumeclaims"


@pytest.fixture
def claims(lab: Lab) -> Lab:
    """Nodes whose own folders end with their pods, and a claim for each job."""
    lab.cluster.kubelet.forgetful = True
    work = WorkStorage(per_job="10Gi")
    lab.policies = PodPolicies(PodPolicy(gpus_per_slot=0, keep_s=600, work=work))
    lab.script = LONG
    return lab


def claims_of(lab: Lab) -> list[Object]:
    return lab.cluster.store.all(CLAIMS)


def began_at(events: list[pb.JobEvent]) -> list[int]:
    """The step at which each attempt began."""
    lines = (re.match(r"Training begins at step (\d+)", event.log) for event in events)
    return [int(line[1]) for line in lines if line]


async def evicted_to_another_node(lab: Lab) -> list[int]:
    """Where both attempts of a job began, the second on another node."""
    async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
        job = await stub.CreateJob(job_request(max_restarts=0))
        await until_said(stub, job.name, "Runs on node-1")
        await until_step(stub, job.name, 5)
        lab.cluster.kubelet.node = "node-2"
        lab.script = Script(steps=40)
        ((_, pod),) = lab.cluster.controller.ran
        lab.cluster.kubelet.evict(pod, "graft")
        events = await follow(stub, job.name)
        assert events[-1].state_change.to_state == pb.JOB_STATE_SUCCEEDED
        assert "Runs on node-2" in [event.log for event in events]
        return began_at(events)


async def test_a_preempted_job_goes_on_from_its_checkpoint_on_another_node(claims: Lab) -> None:
    first, second = await evicted_to_another_node(claims)
    assert first == 0
    assert second >= 5
    (claim,) = claims.cluster.store.created[CLAIMS]
    assert claim.startswith("graft-bot-")


async def test_without_a_claim_it_begins_anew(claims: Lab) -> None:
    claims.policies = PodPolicies(PodPolicy(gpus_per_slot=0))
    assert await evicted_to_another_node(claims) == [0, 0]


async def test_a_claim_is_kept_as_long_as_the_ended_job_and_goes_with_it(claims: Lab) -> None:
    claims.script = Script(steps=3)
    async with claims.trainer() as trainer, trainer_stub(trainer.address) as stub:
        job = await stub.CreateJob(job_request())
        await states(stub, job.name)
        await eventually(lambda: "ownerReferences" in claims_of(claims)[0]["metadata"])
        (made,) = claims.cluster.jobs()
        await eventually(lambda: "ttlSecondsAfterFinished" in claims.cluster.jobs()[0]["spec"])
        claims.cluster.store.remove("jobs", "graft", made["metadata"]["name"])
        assert not claims_of(claims)


async def test_a_restart_of_the_trainer_keeps_claims_of_open_jobs_and_drops_others(
    claims: Lab,
) -> None:
    claims.make = IdleRun
    async with claims.trainer(slots=1) as trainer, trainer_stub(trainer.address) as stub:
        await stub.CreateJob(job_request())
        await eventually(lambda: len(claims_of(claims)) == 1)
        (kept,) = claims_of(claims)
    lost = {**kept["metadata"], "name": "graft-lost-0123456789"}
    claims.cluster.store.create(CLAIMS, "graft", {**kept, "metadata": lost})
    async with claims.trainer(slots=1):
        await eventually(lambda: len(claims_of(claims)) == 1)
        assert claims_of(claims)[0]["metadata"]["name"] == kept["metadata"]["name"]


async def test_a_claim_that_several_nodes_cannot_share_fails_the_job_in_words(claims: Lab) -> None:
    async with claims.trainer() as trainer, trainer_stub(trainer.address) as stub:
        request = job_request()
        request.spec.resources.nodes = 2
        job = await stub.CreateJob(request)
        assert (await states(stub, job.name))[-1] == "FAILED"
        message = (await stub.GetJob(pb.GetJobRequest(name=job.name))).message
        assert "2 nodes, and the pod policy gives each job a claim that is ReadWriteOnce" in message
        assert "Set work.access_mode to ReadWriteMany" in message
