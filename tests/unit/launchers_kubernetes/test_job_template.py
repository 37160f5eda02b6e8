"""What an attempt's Kubernetes objects hold."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from graft.errors import GraftError
from graft.kubernetes.groups import Group
from graft.kubernetes.job_template import (
    Manifest,
    in_order,
    owned,
    render_attempt,
)
from graft.kubernetes.names import attempt_object_name, token_digest
from graft.kubernetes.pod_policy import PodPolicy, Storage, WorkStorage, policies_from_dict
from graft.kubernetes.pod_template import AttemptPlan, Size, size_of
from graft.spec_file import spec_from_dict
from graft.tls import Tls

PLAN = AttemptPlan(
    job="namespaces/default/jobs/bot-1",
    attempt=2,
    spec_json='{"seed": "1"}',
    trainer_address="graft-trainer:50052",
    token="secret-token",
    registry_address="graft-registry:50051",
)
ALONE = replace(PLAN, trainer_address="", token="")
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


def rendered(plan: AttemptPlan = PLAN, policy: PodPolicy | None = None) -> dict[str, Manifest]:
    """The objects by their kind."""
    return {one["kind"]: one for one in render_attempt(plan, policy or PodPolicy())}


def pod(plan: AttemptPlan = PLAN, policy: PodPolicy | None = None) -> Any:
    return rendered(plan, policy)["Job"]["spec"]["template"]["spec"]


def environment(spec: Any) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in spec["containers"][0]["env"]}


def mounted(spec: Any, path: str) -> Any:
    name = next(m["name"] for m in spec["containers"][0]["volumeMounts"] if m["mountPath"] == path)
    return next(volume for volume in spec["volumes"] if volume["name"] == name)


class TestNames:
    def test_an_attempt_has_one_name_that_says_what_it_is(self) -> None:
        name = attempt_object_name("namespaces/default/jobs/bot-1", 2)
        assert name == attempt_object_name("namespaces/default/jobs/bot-1", 2)
        assert re.fullmatch(r"graft-bot-1-[0-9a-f]{10}-2", name)

    @pytest.mark.parametrize("job", ["a" * 63, "a.b_c", "a", "1"])
    def test_it_is_a_host_name_with_room_for_an_index(self, job: str) -> None:
        name = attempt_object_name(f"namespaces/{'n' * 63}/jobs/{job}", 12345)
        assert DNS_LABEL.fullmatch(f"{name}-9999-abcde")
        # A JobSet's pod, which its webhook measures.
        assert len(f"{name}-node-0-1023-abcde") <= 63

    def test_jobs_that_only_look_alike_have_different_names(self) -> None:
        jobs = ["a/jobs/b-c", "a-b/jobs/c", "a/jobs/b.c", "a/jobs/b_c", "a/jobs/" + "b" * 63]
        names = {attempt_object_name(f"namespaces/{job}", 1) for job in jobs}
        assert len(names) == len(jobs)


class TestAttended:
    def test_it_has_one_go(self) -> None:
        spec = rendered()["Job"]["spec"]
        assert (spec["backoffLimit"], spec["completions"], spec["parallelism"]) == (0, 1, 1)
        rules = spec["podFailurePolicy"]["rules"]
        assert {rule["action"] for rule in rules} == {"FailJob"}
        assert rules[1]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]

    def test_it_does_not_vanish_before_its_end_is_stored(self) -> None:
        assert "ttlSecondsAfterFinished" not in rendered()["Job"]["spec"]

    def test_the_token_is_in_the_secret_alone(self) -> None:
        objects = rendered()
        assert objects["Secret"]["stringData"] == {"token": "secret-token"}
        assert "secret-token" not in str([objects["Job"], objects["ConfigMap"]])
        meta = objects["Job"]["metadata"]
        assert meta["annotations"]["graft.dev/token-sha256"] == token_digest("secret-token")
        variables = pod()["containers"][0]["env"]
        token = next(one for one in variables if one["name"] == "GRAFT_WORKER_TOKEN")
        assert token["valueFrom"]["secretKeyRef"]["name"] == objects["Secret"]["metadata"]["name"]

    def test_the_worker_is_told_who_it_is_and_where_its_spec_is(self) -> None:
        told = environment(pod())
        assert told["GRAFT_WORKER_JOB"] == PLAN.job
        assert told["GRAFT_WORKER_ATTEMPT"] == "2"
        assert told["GRAFT_WORKER_TRAINER"] == "graft-trainer:50052"
        assert told["GRAFT_WORKER_REGISTRY"] == "graft-registry:50051"
        assert told["GRAFT_WORKER_DIR"] == "/graft/work/default/bot-1"
        container = pod()["containers"][0]
        assert container["command"] == [
            *("python", "-m", "services.trainer.run"),
            "/graft/spec/spec.json",
        ]
        spec = mounted(pod(), "/graft/spec")["configMap"]["name"]
        assert rendered()["ConfigMap"]["metadata"]["name"] == spec
        assert rendered()["ConfigMap"]["data"] == {"spec.json": '{"seed": "1"}'}

    def test_labels_name_the_job_and_the_attempt_everywhere(self) -> None:
        objects = rendered()
        template = objects["Job"]["spec"]["template"]
        for meta in [template["metadata"], *(one["metadata"] for one in objects.values())]:
            assert meta["labels"]["graft.dev/job"] == "bot-1"
            assert meta["labels"]["graft.dev/attempt"] == "2"
            assert meta["labels"]["app.kubernetes.io/part-of"] == "graft"

    def test_what_it_needs_goes_with_it(self) -> None:
        made = rendered()
        job = made["Job"] | {"metadata": made["Job"]["metadata"] | {"uid": "u-1"}}
        reference = owned(made["Secret"], job)["metadata"]["ownerReferences"]
        assert reference == [
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": job["metadata"]["name"],
                "uid": "u-1",
                "controller": False,
                "blockOwnerDeletion": False,
            }
        ]


class TestAlone:
    def test_its_job_starts_it_again_unless_that_is_in_vain(self) -> None:
        spec = rendered(ALONE)["Job"]["spec"]
        assert spec["backoffLimit"] == 3
        rules = spec["podFailurePolicy"]["rules"]
        assert [rule["action"] for rule in rules] == ["FailJob", "Ignore", "Ignore"]
        assert {64, 65} <= set(rules[0]["onExitCodes"]["values"])
        assert rules[1]["onPodConditions"][0]["type"] == "DisruptionTarget"
        assert rules[2]["onExitCodes"]["values"] == [75]

    def test_it_has_no_secret_and_no_trainer(self) -> None:
        assert set(rendered(ALONE)) == {"Job", "ConfigMap"}
        assert "GRAFT_WORKER_TRAINER" not in environment(pod(ALONE))


@pytest.mark.parametrize("plan", [PLAN, ALONE])
def test_exit_codes_are_in_order_as_the_api_server_wants_them(plan: AttemptPlan) -> None:
    for rule in rendered(plan)["Job"]["spec"]["podFailurePolicy"]["rules"]:
        values = rule.get("onExitCodes", {}).get("values", [])
        assert values == sorted(set(values))


class TestPod:
    def test_it_meets_the_restricted_standard(self) -> None:
        spec = pod()
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}
        assert spec["automountServiceAccountToken"] is False

    def test_it_runs_where_the_operator_says_and_for_as_long(self) -> None:
        toleration = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        policy = PodPolicy(
            node_selector={"pool": "gpu"}, tolerations=(toleration,), deadline_s=7200
        )
        spec = pod(policy=policy)
        assert spec["nodeSelector"] == {"pool": "gpu"}
        assert spec["tolerations"] == [toleration]
        assert rendered(policy=policy)["Job"]["spec"]["activeDeadlineSeconds"] == 7200
        assert "activeDeadlineSeconds" not in rendered()["Job"]["spec"]

    def test_what_a_worker_writes_to_is_a_volume(self) -> None:
        spec = pod()
        for path in ("/graft/work", "/graft/cache", "/home/graft", "/tmp"):
            assert "emptyDir" in mounted(spec, path)
        assert mounted(spec, "/dev/shm")["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}

    def test_checkpoints_are_where_the_operator_says(self) -> None:
        policy = PodPolicy(
            work=WorkStorage(claim="training"), bases=Storage("models", read_only=True)
        )
        claim = mounted(pod(policy=policy), "/graft/work")["persistentVolumeClaim"]
        assert claim["claimName"] == "training"
        assert mounted(pod(policy=policy), "/graft/bases")["persistentVolumeClaim"]["readOnly"]

    def test_slots_are_gpus_and_shares_of_the_rest(self) -> None:
        plan = replace(PLAN, size=Size(slots=2))
        limits = pod(plan)["containers"][0]["resources"]["limits"]
        assert limits == {"memory": "32Gi", "nvidia.com/gpu": "2"}
        assert pod(plan)["containers"][0]["resources"]["requests"] == {"cpu": "2", "memory": "8Gi"}

    @pytest.mark.parametrize(
        ("size", "cpu", "threads"),
        [
            (Size(), "4", "4"),
            (Size(slots=2), "4", "4"),
            (Size(), "500m", "1"),
            (Size(cpu_threads=3), "4", "3"),
        ],
    )
    def test_a_process_computes_with_as_many_threads_as_it_has_cores(
        self, size: Size, cpu: str, threads: str
    ) -> None:
        policy = PodPolicy(requests={"cpu": cpu})
        assert environment(pod(replace(PLAN, size=size), policy))["OMP_NUM_THREADS"] == threads

    def test_threads_that_a_job_asks_for_are_cores_that_it_gets(self) -> None:
        plan = replace(PLAN, size=Size(cpu_threads=6))
        assert pod(plan)["containers"][0]["resources"]["requests"]["cpu"] == "6"

    def test_a_job_on_cpu_asks_for_no_gpu(self) -> None:
        limits = pod(policy=PodPolicy(gpus_per_slot=0))["containers"][0]["resources"]["limits"]
        assert limits == {"memory": "16Gi"}

    def test_the_operator_has_the_last_word_on_the_template(self) -> None:
        over = {
            "metadata": {"annotations": {"team": "a"}},
            "spec": {
                "priorityClassName": None,
                "containers": [
                    {"name": "worker", "env": [{"name": "HF_HOME", "value": "/elsewhere"}]},
                    {"name": "sidecar", "image": "side"},
                ],
            },
        }
        template = rendered(policy=PodPolicy(pod=over))["Job"]["spec"]["template"]
        assert template["metadata"]["annotations"]["team"] == "a"
        assert "priorityClassName" not in template["spec"]
        assert [one["name"] for one in template["spec"]["containers"]] == ["worker", "sidecar"]
        told = environment(template["spec"])
        assert told["HF_HOME"] == "/elsewhere"
        assert told["GRAFT_WORKER_JOB"] == PLAN.job

    def test_the_environment_of_the_operator_cannot_make_it_another_worker(self) -> None:
        policy = PodPolicy(env={"GRAFT_WORKER_JOB": "other", "HF_ENDPOINT": "mirror"})
        told = environment(pod(policy=policy))
        assert told["GRAFT_WORKER_JOB"] == PLAN.job
        assert told["HF_ENDPOINT"] == "mirror"

    def test_where_services_speak_tls_it_has_a_certificate_to_show(self) -> None:
        spec = pod(policy=PodPolicy(tls_secret="graft-worker-tls"))
        tls = Tls.from_environ(environment(spec))
        assert tls is not None
        assert [one.name for one in tls.files] == ["ca.crt", "tls.crt", "tls.key"]
        (folder,) = {str(one.parent) for one in tls.files}
        secret = mounted(spec, folder)["secret"]
        assert secret == {"secretName": "graft-worker-tls", "defaultMode": 0o440}
        assert Tls.from_environ(environment(pod())) is None

    def test_with_a_queue_it_waits_for_kueue(self) -> None:
        job = rendered(policy=PodPolicy(queue="team-a"))["Job"]
        assert job["spec"]["suspend"] is True
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
        assert "suspend" not in rendered()["Job"]["spec"]


class TestSeveralNodes:
    PLAN = replace(PLAN, size=Size(slots=4, nodes=3))

    def test_they_are_an_indexed_job_whose_pods_find_the_first(self) -> None:
        objects = rendered(self.PLAN)
        spec, name = objects["Job"]["spec"], objects["Job"]["metadata"]["name"]
        assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == (
            *("Indexed", 3),
            3,
        )
        service = objects["Service"]
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
        assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
        command = spec["template"]["spec"]["containers"][0]["command"]
        assert command[:3] == ["python", "-m", "services.trainer.run.torchrun"]
        assert f"--master-addr={name}-0.{name}" in command
        assert "--nnodes=3" in command
        assert "--nproc-per-node=4" in command
        assert command[-1] == "/graft/spec/spec.json"

    def test_they_are_a_jobset_where_it_is_installed(self) -> None:
        objects = render_attempt(self.PLAN, PodPolicy(queue="q"), Group.JOBSET)
        assert [one["kind"] for one in objects] == ["JobSet", "ConfigMap", "Secret"]
        jobset = objects[0]
        assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
        assert jobset["spec"]["suspend"] is True
        (replicated,) = jobset["spec"]["replicatedJobs"]
        inner = replicated["template"]["spec"]
        assert (inner["completionMode"], inner["parallelism"]) == ("Indexed", 3)
        name = jobset["metadata"]["name"]
        command = inner["template"]["spec"]["containers"][0]["command"]
        assert f"--master-addr={name}-node-0-0.{name}" in command

    def test_they_are_a_train_job_with_a_runtime_of_its_own(self) -> None:
        objects = render_attempt(self.PLAN, PodPolicy(queue="q"), Group.TRAINJOB)
        train, runtime, *others = objects
        assert [one["kind"] for one in others] == ["ConfigMap", "Secret"]
        assert in_order(objects)[:2] == [runtime, train]
        assert train["spec"]["suspend"] is True
        assert train["spec"]["trainer"] == {"numNodes": 3}
        assert train["spec"]["runtimeRef"]["kind"] == runtime["kind"] == "TrainingRuntime"
        assert train["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
        (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
        labels = replicated["template"]["metadata"]["labels"]
        assert labels["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"
        inner = replicated["template"]["spec"]
        (container,) = inner["template"]["spec"]["containers"]
        rules = inner["podFailurePolicy"]["rules"]
        assert container["name"] == "node"
        assert {
            rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule
        } == {"node"}
        name = train["metadata"]["name"]
        assert f"--master-addr={name}-node-0-0.{name}" in container["command"]

    def test_what_the_operator_changes_in_the_pod_is_in_a_train_job_too(self) -> None:
        over = {"spec": {"containers": [{"name": "worker", "image": "other"}]}}
        runtime = render_attempt(self.PLAN, PodPolicy(pod=over), Group.TRAINJOB)[1]
        (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
        (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
        assert (container["name"], container["image"]) == ("node", "other")


class TestAClaimOfEachJobsOwn:
    POLICY = PodPolicy(work=WorkStorage(per_job="50Gi", storage_class="fast"))

    def test_is_the_same_for_every_attempt(self) -> None:
        first, second = (
            {one["kind"]: one for one in render_attempt(replace(PLAN, attempt=n), self.POLICY)}
            for n in (1, 2)
        )
        claim = first["PersistentVolumeClaim"]
        assert claim == second["PersistentVolumeClaim"]
        assert claim["spec"] == {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "50Gi"}},
            "storageClassName": "fast",
        }
        for objects in (first, second):
            spec = objects["Job"]["spec"]["template"]["spec"]
            volume = mounted(spec, "/graft/work")["persistentVolumeClaim"]
            assert volume["claimName"] == claim["metadata"]["name"]

    def test_several_nodes_need_one_that_they_can_share(self) -> None:
        plan = replace(PLAN, size=Size(nodes=2))
        with pytest.raises(GraftError, match=r"2 nodes.*ReadWriteOnce"):
            render_attempt(plan, self.POLICY)
        shared = PodPolicy(work=WorkStorage(per_job="50Gi", access_mode="ReadWriteMany"))
        assert render_attempt(plan, shared)[-1]["spec"]["accessModes"] == ["ReadWriteMany"]


class TestPolicies:
    def test_a_namespace_differs_where_it_says_so(self) -> None:
        policies = policies_from_dict(
            {
                "default": {"image": "i", "requests": {"cpu": 2}, "work": {"claim": "w"}},
                "namespaces": {"team-a": {"queue": "a", "tolerations": [{"key": "gpu"}]}},
            }
        )
        assert policies.of("other").queue == ""
        team = policies.of("team-a")
        assert (team.image, team.queue, team.requests) == ("i", "a", {"cpu": "2"})
        assert team.work == WorkStorage(claim="w")

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ([], "The pod policy"),
            ({"defaults": {}}, "no field defaults. Did you mean default?"),
            ({"default": {"imag": "x"}}, "no field imag. Did you mean image?"),
            ({"default": {"image": 1}}, "default.image is 1; it must be a text"),
            ({"default": {"keep_s": -1}}, "default.keep_s is -1"),
            ({"default": {"run_as": 0}}, "default.run_as is 0"),
            ({"default": {"work": {"claims": "x"}}}, "default.work has no field claims"),
            ({"default": {"work": {"read_only": "no"}}}, "must be true or false"),
            ({"default": {"work": {"access_mode": "RWX"}}}, "default.work.access_mode"),
            ({"default": {"work": {"claim": "a", "per_job": "1Gi"}}}, "both claim and per_job"),
            ({"default": {"cache": {"per_job": "1Gi"}}}, "default.cache has no field per_job"),
            ({"namespaces": {"a": {"several_nodes": "mpi"}}}, "namespaces.a.several_nodes"),
            ({"default": {"env": {"A": [1]}}}, "default.env.A"),
            ({"default": {"tolerations": ["x"]}}, "a list of mappings"),
        ],
    )
    def test_a_mistake_is_named(self, values: Any, said: str) -> None:
        with pytest.raises(GraftError, match=re.escape(said)):
            policies_from_dict(values)


def test_a_specs_size_has_the_contracts_defaults() -> None:
    assert size_of(spec_from_dict({})) == Size(slots=1, nodes=1)
    assert size_of(spec_from_dict({"resources": {"nodesAs": "NODES_AS_JOBSET"}})).group == "jobset"
    assert size_of(spec_from_dict({"resources": {"slots": 3, "cpuThreads": 2}})) == Size(
        slots=3, cpu_threads=2
    )
