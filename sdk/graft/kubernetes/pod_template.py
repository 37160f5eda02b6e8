"""The pod of a worker: what runs, what it may use, what it sees of disks; restricted as Pod Security wants it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graft.kubernetes.merge import merged
from graft.kubernetes.pod_policy import PodPolicy, Storage
from graft.kubernetes.pod_tls import TLS_MOUNT, tls_variables, tls_volume
from graft.names import parse_name
from graft.trainer.v1.job_spec_pb2 import JobSpec
from graft.trainer.v1.nodes_pb2 import NodesAs

CONTAINER = "worker"
SPEC_KEY, TOKEN_KEY = "spec.json", "token"
SPEC_DIR, WORK_DIR, CACHE_DIR, BASES_DIR = (
    "/graft/spec",
    "/graft/work",
    "/graft/cache",
    "/graft/bases",
)
KEYS_DIR, HOME_DIR = "/graft/keys", "/home/graft"
# Written by the worker at its end, and kept in the pod's status: its last report, also when nobody listens.
END_FILE = "/dev/termination-log"
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)([a-zA-Z]*)")
_PER_SLOT = ("cpu", "memory", "ephemeral-storage")


@dataclass(frozen=True, slots=True)
class Size:
    """How much a job uses.

    Args:
        slots: on each node.
        nodes: that train together.
        processes_per_node: 0 for one per accelerator.
        cpu_threads: of each worker; 0 where nobody said.
        group: what several nodes are to be (groups.Group); "" where nobody said.
    """

    slots: int = 1
    nodes: int = 1
    processes_per_node: int = 0
    cpu_threads: int = 0
    group: str = ""


def size_of(spec: JobSpec) -> Size:
    """What a spec says about its size, with the contract's defaults."""
    given = spec.resources
    return Size(
        slots=given.slots or 1,
        nodes=getattr(given, "nodes", 0) or 1,
        processes_per_node=getattr(given, "processes_per_node", 0),
        cpu_threads=given.cpu_threads,
        group=NodesAs.Name(given.nodes_as).removeprefix("NODES_AS_").lower()
        if given.nodes_as
        else "",
    )


@dataclass(frozen=True, slots=True)
class AttemptPlan:
    """One attempt of a job, as its objects are made from it.

    Args:
        job: "namespaces/{ns}/jobs/{job}".
        attempt: from 1.
        spec_json: the JobSpec as protobuf JSON.
        size: see size_of().
        trainer_address: "host:port" that the worker reports to; "" for a worker that nobody attends: its
            Job then starts it again by itself.
        token: what it proves itself with to the trainer.
        registry_address: "host:port"; "" for none.
        max_restarts: of a worker that nobody attends.
        name: of the objects; "" for attempt_object_name().
        namespace: Kubernetes' namespace; "" leaves it to whoever applies them.
        instance: which installation of Graft they belong to.
        managed_by: who looks after them.
        api_access: whether the worker gets its service account's token.
        worker_env: further variables for the worker.
    """

    job: str
    attempt: int
    spec_json: str
    size: Size = Size()
    trainer_address: str = ""
    token: str = ""
    registry_address: str = ""
    max_restarts: int = 3
    name: str = ""
    namespace: str = ""
    instance: str = "graft"
    managed_by: str = "graft-trainer"
    api_access: bool = False
    worker_env: Mapping[str, str] | None = None

    @property
    def attended(self) -> bool:
        """Whether a trainer starts each attempt and hears it."""
        return bool(self.trainer_address)


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the first of several nodes is found, and which label's variable says which node this is."""

    master_address: str
    subdomain: str


def pod_template(
    plan: AttemptPlan,
    policy: PodPolicy,
    name: str,
    labels: Mapping[str, str],
    rendezvous: Rendezvous | None,
) -> dict[str, Any]:
    """The pod template of an attempt.

    Args:
        name: of the attempt's ConfigMap and Secret.
        labels: of the pod.
        rendezvous: with several nodes.
    """
    template = {
        "metadata": {"labels": dict(labels), "annotations": dict(policy.annotations)},
        "spec": _without_nothing(
            {
                "restartPolicy": "Never",
                "serviceAccountName": policy.service_account,
                "automountServiceAccountToken": plan.api_access,
                "enableServiceLinks": False,
                "terminationGracePeriodSeconds": policy.grace_period_s,
                "priorityClassName": policy.priority_class,
                "runtimeClassName": policy.runtime_class,
                "schedulerName": policy.scheduler,
                "subdomain": rendezvous.subdomain if rendezvous else "",
                "nodeSelector": dict(policy.node_selector),
                "tolerations": [dict(one) for one in policy.tolerations],
                "imagePullSecrets": [{"name": one} for one in policy.image_pull_secrets],
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": policy.run_as,
                    "runAsGroup": policy.run_as,
                    "fsGroup": policy.run_as,
                    "fsGroupChangePolicy": "OnRootMismatch",
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [_container(plan, policy, name, rendezvous)],
                "volumes": _volumes(policy, name),
            }
        ),
    }
    result: dict[str, Any] = merged(template, policy.pod)
    return result


def _container(
    plan: AttemptPlan, policy: PodPolicy, name: str, rendezvous: Rendezvous | None
) -> dict[str, Any]:
    sources = [{"secretRef": {"name": one}} for one in policy.env_from_secrets]
    sources += [{"configMapRef": {"name": one}} for one in policy.env_from_config_maps]
    return _without_nothing(
        {
            "name": CONTAINER,
            "image": policy.image,
            "imagePullPolicy": policy.image_pull_policy,
            "command": _command(plan, policy, rendezvous),
            "env": _environment(plan, policy, name, rendezvous),
            "envFrom": sources,
            "resources": _resources(plan.size, policy),
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "terminationMessagePath": END_FILE,
            # The end of its log, where it had no time to say how it ended.
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": _mounts(policy),
        }
    )


def processes_per_node(size: Size, policy: PodPolicy) -> int:
    """How many processes torchrun starts on each node: one per accelerator, else one."""
    return size.processes_per_node or max(1, size.slots * policy.gpus_per_slot)


def _command(plan: AttemptPlan, policy: PodPolicy, rendezvous: Rendezvous | None) -> list[str]:
    spec = f"{SPEC_DIR}/{SPEC_KEY}"
    processes = processes_per_node(plan.size, policy)
    if rendezvous is None and processes == 1:
        return [*policy.command, spec]
    # Not torch.distributed.run: this one ends with the worker's own exit code.
    start = [policy.command[0], "-m", "services.trainer.run.torchrun"]
    if rendezvous is None:
        return [*start, "--standalone", f"--nproc-per-node={processes}", spec]
    return [
        *start,
        f"--nnodes={plan.size.nodes}",
        f"--nproc-per-node={processes}",
        # Kubernetes puts the variable's value in.
        "--node-rank=$(GRAFT_NODE_RANK)",
        f"--master-addr={rendezvous.master_address}",
        f"--master-port={policy.rendezvous_port}",
        spec,
    ]


def _environment(
    plan: AttemptPlan, policy: PodPolicy, name: str, rendezvous: Rendezvous | None
) -> list[dict[str, Any]]:
    """Ours after the operator's: what tells a worker who it is cannot be set by mistake."""
    ids = parse_name(plan.job, "namespaces/{namespace}/jobs/{job}")
    told = {
        "HOME": HOME_DIR,
        "HF_HOME": f"{CACHE_DIR}/huggingface",
        "PYTHONUNBUFFERED": "1",
        "GRAFT_WORKER_JOB": plan.job,
        "GRAFT_WORKER_ATTEMPT": str(plan.attempt),
        "GRAFT_WORKER_TRAINER": plan.trainer_address,
        "GRAFT_WORKER_REGISTRY": plan.registry_address,
        "GRAFT_WORKER_DIR": f"{WORK_DIR}/{ids['namespace']}/{ids['job']}",
        "GRAFT_WORKER_END_FILE": END_FILE,
        "GRAFT_WORKER_SIGNING_KEY": f"{KEYS_DIR}/key.pem" if policy.signing_key_secret else "",
        **(tls_variables() if policy.tls_secret else {}),
        "OMP_NUM_THREADS": _threads(plan.size, policy),
        **(plan.worker_env or {}),
    }
    values = {**policy.env, **{key: value for key, value in told.items() if value}}
    listed: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in values.items()]
    if plan.token:
        key = {"name": name, "key": TOKEN_KEY}
        listed.append({"name": "GRAFT_WORKER_TOKEN", "valueFrom": {"secretKeyRef": key}})
    if rendezvous is not None:
        path = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        listed.append({"name": "GRAFT_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": path}}})
    return listed


def _threads(size: Size, policy: PodPolicy) -> str:
    """Of each process: without a number, torch takes every core of the node, whatever the pod may use."""
    if size.cpu_threads:
        return str(size.cpu_threads)
    match = _QUANTITY.fullmatch(policy.requests.get("cpu", ""))
    if match is None or match[2] not in ("", "m"):
        return ""
    cores = float(match[1]) * size.slots / (1000 if match[2] else 1)
    return str(max(1, int(cores / processes_per_node(size, policy))))


def _resources(size: Size, policy: PodPolicy) -> dict[str, Any]:
    requests = _times(policy.requests, size.slots)
    limits = _times(policy.limits, size.slots)
    if size.cpu_threads and "cpu" not in limits:
        requests["cpu"] = str(size.cpu_threads)
    if gpus := size.slots * policy.gpus_per_slot:
        # Extended resources are asked for by their limit alone; both must be equal.
        limits[policy.gpu_resource] = str(gpus)
    return _without_nothing({"requests": requests, "limits": limits})


def _times(quantities: Mapping[str, str], slots: int) -> dict[str, str]:
    return {
        name: _multiplied(value, slots) if name in _PER_SLOT else value
        for name, value in quantities.items()
    }


def _multiplied(quantity: str, times: int) -> str:
    match = _QUANTITY.fullmatch(quantity)
    if match is None or times == 1:
        return quantity
    return f"{float(match[1]) * times:.12g}{match[2]}"


def _volumes(policy: PodPolicy, name: str) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [
        {"name": "spec", "configMap": {"name": name}},
        _volume("work", policy.work),
        _volume("cache", policy.cache),
        _volume("home", Storage(size_limit=policy.scratch_size)),
        _volume("tmp", Storage(size_limit=policy.scratch_size)),
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": policy.shm_size}},
    ]
    if policy.bases.claim:
        volumes.append(_volume("bases", policy.bases))
    if policy.signing_key_secret:
        secret = {"secretName": policy.signing_key_secret, "defaultMode": 0o440}
        volumes.append({"name": "keys", "secret": secret})
    if policy.tls_secret:
        volumes.append(tls_volume(policy.tls_secret))
    return volumes


def _volume(name: str, storage: Storage) -> dict[str, Any]:
    if storage.claim:
        claim = {"claimName": storage.claim, "readOnly": storage.read_only}
        return {"name": name, "persistentVolumeClaim": _without_nothing(claim)}
    return {"name": name, "emptyDir": _without_nothing({"sizeLimit": storage.size_limit})}


def _mounts(policy: PodPolicy) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "spec", "mountPath": SPEC_DIR, "readOnly": True},
        {"name": "work", "mountPath": WORK_DIR},
        {"name": "cache", "mountPath": CACHE_DIR},
        {"name": "home", "mountPath": HOME_DIR},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    if policy.bases.claim:
        mounts.append({"name": "bases", "mountPath": BASES_DIR, "readOnly": policy.bases.read_only})
    if policy.signing_key_secret:
        mounts.append({"name": "keys", "mountPath": KEYS_DIR, "readOnly": True})
    if policy.tls_secret:
        mounts.append(TLS_MOUNT)
    return mounts


def _without_nothing(values: dict[str, Any]) -> dict[str, Any]:
    """Without empty texts, lists and mappings; false and 0 say something."""
    return {key: value for key, value in values.items() if value not in ("", [], {}, ())}
