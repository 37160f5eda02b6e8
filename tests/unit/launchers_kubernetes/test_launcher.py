"""The trainer on a cluster: real jobs through the real API client, from their creation to their end."""

from __future__ import annotations

import asyncio

import pytest
from graft.kubernetes.pod_policy import PodPolicies, PodPolicy
from graft.trainer.v1 import trainer_service_pb2 as pb

from services.trainer.launchers.scripted import Script
from tests.support.kube_api import Cluster, Fault, IdleRun
from tests.support.kube_api.controller import set_condition, tell_event
from tests.support.kube_api.lab import LONG, Lab, ending, states, unschedulable, until_said
from tests.support.kube_api.runs import Ended
from tests.support.kube_api.server import KUEUE
from tests.support.kube_api.store import Object, Refused
from tests.support.trainer import follow, job_request, trainer_stub, until_step
from tests.support.waiting import eventually


class TestAJob:
    async def test_runs_as_one_kubernetes_job_and_succeeds(self, lab: Lab) -> None:
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            assert (await states(stub, job.name))[-2:] == ["FINALIZING", "SUCCEEDED"]
            (made,) = lab.cluster.jobs()
            assert made["metadata"]["annotations"]["graft.dev/job-name"] == job.name
            assert len(lab.cluster.controller.ran) == 1
            for plural in ("configmaps", "secrets"):
                (one,) = lab.cluster.store.all(plural)
                owner = one["metadata"]["ownerReferences"][0]
                assert owner["uid"] == made["metadata"]["uid"]

    async def test_is_kept_until_its_end_is_stored_and_then_for_a_while(self, lab: Lab) -> None:
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            await states(stub, job.name)
            await eventually(
                lambda: lab.cluster.jobs()[0]["spec"].get("ttlSecondsAfterFinished") == 600
            )

    async def test_with_bad_data_fails_at_once_with_its_cause(self, lab: Lab) -> None:
        lab.script = Script(exit_code=65)
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            assert (await states(stub, job.name))[-1] == "FAILED"
            failed = await stub.GetJob(pb.GetJobRequest(name=job.name))
            assert failed.failure_cause == 2
            assert failed.attempt == 1

    async def test_that_is_lost_goes_on_from_its_checkpoint(self, lab: Lab) -> None:
        lab.script = Script(steps=6, lost_attempts=1)
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"
            assert (await stub.GetJob(pb.GetJobRequest(name=job.name))).attempt == 2
            assert len(lab.cluster.store.created["jobs"]) == 2

    async def test_that_needs_too_much_memory_says_what_to_do(self, lab: Lab) -> None:
        lab.make = lambda started: ending(started, Ended(137, "Killed", "OOMKilled"))
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            assert (await states(stub, job.name))[-1] == "FAILED"
            failed = await stub.GetJob(pb.GetJobRequest(name=job.name))
            assert failed.failure_cause == 3
            assert "limits.memory" in failed.message

    async def test_that_breaks_shows_the_end_of_its_log(self, lab: Lab) -> None:
        lab.make = lambda started: ending(started, Ended(70, "first\nValueError: no\n"))
        lab.cluster.server.logs = lambda _namespace, _pod: "Traceback\nValueError: no"
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            events = await asyncio.wait_for(follow(stub, job.name), 120)
            assert "Traceback" in [event.log for event in events]
            assert "ValueError: no" in events[-1].state_change.message

    async def test_is_cancelled_with_its_pod(self, lab: Lab) -> None:
        lab.script = LONG
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            await until_step(stub, job.name, 3)
            await stub.CancelJob(pb.CancelJobRequest(name=job.name))
            assert (await states(stub, job.name))[-1] == "CANCELLED"

    async def test_that_waits_for_a_node_is_cancelled_without_having_run(self, lab: Lab) -> None:
        lab.cluster.kubelet.hinder = lambda _pod: unschedulable("0/1 nodes are available")
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            await until_said(stub, job.name, "No node")
            await stub.CancelJob(pb.CancelJobRequest(name=job.name))
            assert (await states(stub, job.name))[-1] == "CANCELLED"
            await eventually(lambda: not lab.cluster.jobs())
            assert not lab.cluster.store.all("secrets")


class TestDisruptions:
    async def test_an_evicted_job_goes_on_and_no_restart_is_counted(self, lab: Lab) -> None:
        lab.script = LONG
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request(max_restarts=0))
            await until_step(stub, job.name, 3)
            lab.script = Script(steps=10)
            (_, pod), *_ = lab.cluster.controller.ran
            lab.cluster.kubelet.evict(pod, "graft")
            went = await states(stub, job.name)
            assert went[-1] == "SUCCEEDED"
            assert went.count("QUEUED") == 2
            assert int((lab.work_dir(job.name) / "scripted-checkpoint.json").read_text()) >= 10
            assert [name for name, _ in lab.cluster.controller.ran] == lab.cluster.store.created[
                "jobs"
            ]

    async def test_a_pod_that_is_killed_in_a_disruption_is_not_the_jobs_failure(
        self, lab: Lab
    ) -> None:
        lab.make = IdleRun
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request(max_restarts=0))
            await eventually(lambda: len(lab.cluster.kubelet.runs) == 1)
            lab.make = None
            (pod,) = lab.cluster.kubelet.runs
            run = lab.cluster.kubelet.runs[pod]
            assert isinstance(run, IdleRun)
            lab.cluster.kubelet.evict(pod, "graft")
            run.end(Ended(137))
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"

    async def test_a_job_that_kueue_suspends_goes_on_as_another_attempt(self, lab: Lab) -> None:
        lab.script = LONG
        lab.policies = PodPolicies(PodPolicy(gpus_per_slot=0, queue="team-a"))
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request(max_restarts=0))
            assert "queue team-a" in await until_said(stub, job.name, "Kueue")
            suspend(lab.cluster, False)
            await until_step(stub, job.name, 3)
            lab.script = Script(steps=10)
            suspend(lab.cluster, True)
            await eventually(lambda: len(lab.cluster.store.created["jobs"]) == 2)
            await eventually(lambda: len(lab.cluster.jobs()) == 1)
            suspend(lab.cluster, False)
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"
            assert len(lab.cluster.controller.ran) == 2

    async def test_a_job_that_somebody_deletes_goes_on_from_its_checkpoint(self, lab: Lab) -> None:
        lab.script = LONG
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request(max_restarts=0))
            await until_step(stub, job.name, 2)
            (made,) = lab.cluster.jobs()
            lab.script = Script(steps=10)
            lab.cluster.store.remove("jobs", "graft", made["metadata"]["name"])
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"
            assert len(lab.cluster.controller.ran) == 2

    async def test_a_pod_that_dies_with_its_deleted_job_is_lost(self, lab: Lab) -> None:
        lab.make = IdleRun
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request(max_restarts=0))
            await eventually(lambda: len(lab.cluster.kubelet.runs) == 1)
            ((name, pod),) = lab.cluster.controller.ran
            lab.cluster.store.remove("pods", "graft", pod)
            lab.cluster.store.remove("jobs", "graft", name)
            assert (await states(stub, job.name))[-1] == "FAILED"
            found = await stub.GetJob(pb.GetJobRequest(name=job.name))
            assert "its Job was deleted by somebody else" in found.message


def suspend(cluster: Cluster, value: bool) -> None:
    """What Kueue does to the newest Job."""
    job = cluster.jobs()[-1]
    changed = {**job, "spec": {**job["spec"], "suspend": value}}
    cluster.store.update("jobs", changed)


def queued(cluster: Cluster, job: Object, **waits: str) -> Object:
    """What Kueue makes for a Job."""
    meta = job["metadata"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"]}
    workload = {"metadata": {"name": f"job-{meta['name']}-1a2b3", "ownerReferences": [owner]}}
    made = cluster.store.create("workloads", "graft", workload)
    admit(cluster, made, **waits)
    return made


def admit(cluster: Cluster, workload: Object, **waits: str) -> None:
    """The conditions of a Workload: each is true without a reason why it is not."""
    current = cluster.store.get("workloads", "graft", workload["metadata"]["name"])
    for kind, why in waits.items():
        set_condition(current, kind, "False" if why else "True", "Pending", why)
    cluster.store.update("workloads", current)


class TestWaiting:
    @pytest.mark.parametrize(
        ("status", "said"),
        [
            (
                unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
                "No node has enough GPUs (nvidia.com/gpu) free: 0/3 nodes",
            ),
            (
                unschedulable("0/3 nodes are available: 3 node(s) had untolerated taint."),
                "No node can take its pod: 0/3 nodes",
            ),
            (
                unschedulable(
                    "0/3 nodes are available: 3 node(s) had untolerated taint {nvidia.com/gpu: "
                    "present}. preemption: 0/3 nodes are available."
                ),
                "Its pod does not tolerate the taint nvidia.com/gpu: 0/3 nodes",
            ),
            (
                unschedulable(
                    "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
                ),
                "A volume of its pod is not bound yet: 0/1 nodes",
            ),
            (
                {
                    "containerStatuses": [
                        {
                            "name": "worker",
                            "image": "no/image:1",
                            "state": {
                                "waiting": {"reason": "ImagePullBackOff", "message": "not found"}
                            },
                        }
                    ]
                },
                "The image no/image:1 cannot be pulled: not found",
            ),
        ],
    )
    async def test_a_pod_says_why_it_does_not_run(
        self, lab: Lab, status: Object, said: str
    ) -> None:
        lab.cluster.kubelet.hinder = lambda _pod: status
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            await until_said(stub, job.name, said)
            lab.cluster.kubelet.hinder = lambda _pod: None
            lab.cluster.kubelet.look_again()
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"

    async def test_a_job_says_in_the_queues_words_why_it_waits(self, lab: Lab) -> None:
        lab.policies = PodPolicies(PodPolicy(gpus_per_slot=0, queue="team-a"))
        lab.cluster.server.installed.add(KUEUE)
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            await until_said(stub, job.name, "Waits in the queue team-a of Kueue")
            (made,) = lab.cluster.jobs()
            why = "couldn't assign flavors to pod set main: insufficient quota for nvidia.com/gpu"
            workload = queued(lab.cluster, made, QuotaReserved=why)
            await until_said(stub, job.name, f"Waits in the queue team-a of Kueue: {why}")
            checks = "The workload has failed admission checks: prov"
            admit(lab.cluster, workload, QuotaReserved="", Admitted=checks)
            await until_said(stub, job.name, f"Waits in the queue team-a of Kueue: {checks}")
            admit(lab.cluster, workload, QuotaReserved="", Admitted="")
            suspend(lab.cluster, False)
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"

    async def test_queues_that_the_trainer_may_not_see_do_not_keep_it_from_starting(
        self, lab: Lab
    ) -> None:
        lab.policies = PodPolicies(PodPolicy(gpus_per_slot=0, queue="team-a"))
        lab.cluster.server.installed.add(KUEUE)
        lab.cluster.server.forbidden.add("workloads")
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            await until_said(stub, job.name, "Waits in the queue team-a of Kueue")

    async def test_a_volume_that_is_not_there_is_named(self, lab: Lab) -> None:
        lab.cluster.kubelet.hinder = lambda _pod: {}
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            await eventually(lambda: len(lab.cluster.pods()) == 1)
            pod = lab.cluster.pods()[0]["metadata"]["name"]
            message = 'persistentvolumeclaim "training" not found'
            tell_event(lab.cluster.store, "graft", "Pod", pod, "FailedMount", message)
            await until_said(stub, job.name, 'A volume cannot be set up: persistentvolumeclaim "tr')

    async def test_a_quota_of_pods_is_waited_for(self, lab: Lab) -> None:
        def refuse(_plural: str, _pod: Object) -> None:
            raise Refused(403, "Forbidden", "exceeded quota: gpus, requested: 1, used: 8")

        lab.cluster.pod_admission = refuse
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            await until_said(stub, job.name, "Waits for the namespace's quota")
            lab.cluster.pod_admission = lambda _plural, _pod: None
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"

    async def test_waiting_is_no_silence(self, lab: Lab) -> None:
        lab.cluster.kubelet.hinder = lambda _pod: unschedulable("0/1 nodes are available")
        # Its pod, once it runs, is heard of long before the first of these has passed.
        limits = {"worker_start_timeout_s": 2.0, "worker_timeout_s": 60.0}
        async with lab.trainer(**limits) as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request(max_restarts=0))
            await until_said(stub, job.name, "No node")
            await asyncio.sleep(2.3)
            lab.cluster.kubelet.hinder = lambda _pod: None
            lab.cluster.kubelet.look_again()
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"

    async def test_where_it_runs_is_told(self, lab: Lab) -> None:
        lab.script = LONG
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            await until_said(stub, job.name, "Runs on node-1")


class TestRefusals:
    async def test_a_webhook_that_refuses_ends_the_job_with_its_words(self, lab: Lab) -> None:
        def refuse(plural: str, _one: Object) -> None:
            if plural == "jobs":
                raise Refused(
                    400, "BadRequest", 'admission webhook "policy.example" denied the request: no'
                )

        lab.cluster.server.admission = refuse
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            assert (await states(stub, job.name))[-1] == "FAILED"
            failed = await stub.GetJob(pb.GetJobRequest(name=job.name))
            assert 'admission webhook "policy.example" denied' in failed.message
            assert failed.attempt == 1

    async def test_a_secret_that_is_refused_leaves_no_job_behind(self, lab: Lab) -> None:
        def refuse(plural: str, _one: Object) -> None:
            if plural == "secrets":
                raise Refused(403, "Forbidden", "secrets is forbidden")

        lab.cluster.server.admission = refuse
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            assert (await states(stub, job.name))[-1] == "FAILED"
            await eventually(lambda: not lab.cluster.jobs())
            assert not lab.cluster.kubelet.runs

    async def test_a_quota_of_jobs_is_waited_for(self, lab: Lab) -> None:
        message = 'jobs.batch "graft" is forbidden: exceeded quota: jobs'
        fault = Fault(403, reason="Forbidden", message=message, method="POST", plural="jobs")
        lab.cluster.faults.next.extend([fault] * 4)
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            await until_said(stub, job.name, "Waits for the namespace's quota")
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"

    async def test_a_job_of_somebody_else_under_its_name_is_left_alone(self, lab: Lab) -> None:
        lab.cluster.faults.next.append(Fault(0, done=True, method="POST", plural="jobs"))

        def take_the_name(plural: str, one: Object) -> None:
            if plural == "jobs":
                one["metadata"]["annotations"]["graft.dev/token-sha256"] = "another"

        lab.cluster.server.admission = take_the_name
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            assert (await states(stub, job.name))[-1] == "FAILED"
            assert "did not make" in (await stub.GetJob(pb.GetJobRequest(name=job.name))).message


class TestFaultsOfTheApi:
    async def test_an_answer_that_is_lost_makes_no_second_job(self, lab: Lab) -> None:
        for plural in ("jobs", "configmaps", "secrets"):
            lab.cluster.faults.next.append(Fault(0, done=True, method="POST", plural=plural))
            lab.cluster.faults.next.append(Fault(504, method="POST", plural=plural))
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"
            assert len(lab.cluster.store.created["jobs"]) == 1

    async def test_it_waits_as_long_as_it_is_asked_to(self, lab: Lab) -> None:
        fault = Fault(429, reason="TooManyRequests", retry_after_s=1, method="POST", plural="jobs")
        lab.cluster.faults.next.append(fault)
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            begun = asyncio.get_running_loop().time()
            await stub.CreateJob(job_request())
            await eventually(lambda: len(lab.cluster.jobs()) == 1)
            assert asyncio.get_running_loop().time() - begun >= 1.0

    async def test_watches_that_break_are_resumed_without_another_list(self, lab: Lab) -> None:
        lab.script = LONG
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            await until_step(stub, job.name, 2)
            lists = lab.cluster.calls("GET", "pods")
            lab.cluster.server.break_watches()
            await eventually(lambda: lab.cluster.calls("WATCH", "pods") >= 2)
            await stub.CancelJob(pb.CancelJobRequest(name=job.name))
            assert (await states(stub, job.name))[-1] == "CANCELLED"
            assert lab.cluster.calls("GET", "pods") == lists

    async def test_a_watch_that_is_too_old_means_one_more_list(self, lab: Lab) -> None:
        lab.script = Script(steps=30, step_s=0.02)
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            await until_step(stub, job.name, 2)
            tell_event(lab.cluster.store, "graft", "Job", "other", "FailedCreate", "")
            lab.cluster.store.compact()
            lab.cluster.server.break_watches()
            await eventually(lambda: lab.cluster.calls("GET", "jobs") >= 2)
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"
            assert len(lab.cluster.store.created["jobs"]) == 1

    async def test_a_token_that_rotates_is_read_again(self, lab: Lab) -> None:
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            text = lab.cluster.kubeconfig.read_text()
            lab.cluster.server.token = "rotated"
            lab.cluster.kubeconfig.write_text(text.replace("token-of-the-tests", "rotated"))
            job = await stub.CreateJob(job_request())
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"


class TestARestartOfTheTrainer:
    async def test_leaves_running_jobs_alone_and_finds_them(self, lab: Lab) -> None:
        lab.script = Script(steps=150, step_s=0.02)
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            await until_step(stub, job.name, 3)
        assert len(lab.cluster.kubelet.runs) == 1
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"
            assert (await stub.GetJob(pb.GetJobRequest(name=job.name))).attempt == 1
        assert len(lab.cluster.controller.ran) == 1

    async def test_a_job_that_ended_meanwhile_is_never_run_again(self, lab: Lab) -> None:
        lab.make = IdleRun
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            await eventually(lambda: len(lab.cluster.kubelet.runs) == 1)
        (run,) = lab.cluster.kubelet.runs.values()
        assert isinstance(run, IdleRun)
        version = "namespaces/default/adapters/bot/versions/7"
        run.end(Ended(0, f'{{"version": "{version}"}}'))
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"
            found = await stub.GetJob(pb.GetJobRequest(name=job.name))
            assert (found.version, found.attempt) == (version, 1)

    async def test_a_job_whose_pod_is_gone_too_is_known_by_its_conditions(self, lab: Lab) -> None:
        lab.make = IdleRun
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            names = [(await stub.CreateJob(job_request())).name for _ in range(3)]
            await eventually(lambda: len(lab.cluster.kubelet.runs) == 3)
        lab.make = None
        ends = [Ended(0), Ended(65), Ended(137)]
        pods = {}
        for name, ended in zip(names, ends, strict=True):
            pod = next(
                pod["metadata"]["name"]
                for pod in lab.cluster.pods()
                if pod["metadata"]["labels"]["graft.dev/job"] == name.rpartition("/")[2]
            )
            pods[pod] = ended
        for pod, ended in pods.items():
            if ended.exit_code == 137:
                lab.cluster.kubelet.evict(pod, "graft")
            run = lab.cluster.kubelet.runs[pod]
            assert isinstance(run, IdleRun)
            run.end(ended)
        ended_jobs = [one for one in lab.cluster.jobs() if one]
        await eventually(lambda: all(_has_ended(one) for one in lab.cluster.jobs()))
        assert len(ended_jobs) == 3
        for pod in pods:
            lab.cluster.store.remove("pods", "graft", pod)
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            assert (await states(stub, names[0]))[-1] == "SUCCEEDED"
            assert (await states(stub, names[1]))[-1] == "FAILED"
            went = await states(stub, names[2])
            assert went[-1] == "SUCCEEDED"
            assert (await stub.GetJob(pb.GetJobRequest(name=names[0]))).attempt == 1
            assert (await stub.GetJob(pb.GetJobRequest(name=names[2]))).attempt == 2

    async def test_an_orphan_is_removed(self, lab: Lab) -> None:
        lab.make = IdleRun
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            await stub.CreateJob(job_request())
            await eventually(lambda: len(lab.cluster.kubelet.runs) == 1)
        lab.folder = lab.folder / "another"
        lab.folder.mkdir()
        async with lab.trainer():
            await eventually(lambda: not lab.cluster.jobs())

    async def test_what_another_trainer_made_is_left_alone(self, lab: Lab) -> None:
        lab.make = IdleRun
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            await stub.CreateJob(job_request())
            await eventually(lambda: len(lab.cluster.kubelet.runs) == 1)
        job = lab.cluster.jobs()[0]
        job["metadata"]["labels"]["app.kubernetes.io/instance"] = "other"
        lab.folder = lab.folder / "another"
        lab.folder.mkdir()
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            lab.make = None
            own = await stub.CreateJob(job_request())
            await states(stub, own.name)
        assert job["metadata"]["uid"] in [one["metadata"]["uid"] for one in lab.cluster.jobs()]
        assert not lab.cluster.calls("DELETE")

    async def test_a_creation_that_was_cut_off_is_completed(self, lab: Lab) -> None:
        fault = Fault(503, method="POST", plural="secrets")
        lab.cluster.faults.next.extend([fault] * 1000)
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            job = await stub.CreateJob(job_request())
            await eventually(lambda: len(lab.cluster.pods()) == 1)
        lab.cluster.faults.next.clear()
        async with lab.trainer() as trainer, trainer_stub(trainer.address) as stub:
            assert (await states(stub, job.name))[-1] == "SUCCEEDED"
            assert (await stub.GetJob(pb.GetJobRequest(name=job.name))).attempt == 1


def _has_ended(job: Object) -> bool:
    found = job.get("status", {}).get("conditions", [])
    return any(one["type"] in ("Complete", "Failed") for one in found)
