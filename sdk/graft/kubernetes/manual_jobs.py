"""Jobs that `kubectl apply` starts and no trainer hears: manifests made from a spec, with its small files beside it.

Pure functions: nothing here talks to a cluster. `graft jobs render` and `graft jobs submit --kubernetes` use them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from graft.errors import GraftError, Reason
from graft.kubernetes.group_template import child_job_name
from graft.kubernetes.groups import Group, choose_group
from graft.kubernetes.job_template import Manifest, render_attempt
from graft.kubernetes.pod_policy import PodPolicy
from graft.kubernetes.pod_template import SPEC_DIR, SPEC_KEY, AttemptPlan, Size, size_of
from graft.names import DEFAULT_NAMESPACE, job_name
from graft.trainer.v1.job_spec_pb2 import JobSpec

KINDS = ("train", "merge", "evaluate")
JOB_VARIABLE = "GRAFT_WORKER_KUBERNETES_JOB"
# Room for a CronJob's time (11 letters) and a pod's own five. Pods of a JobSet need more, see _check.
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,44}[a-z0-9])?")
# A ConfigMap holds 1 MiB; the rest is for the spec.
MOST_DATA_BYTES = 900_000
_LONGEST_HOST = 63
_JOB_NAME_LABEL = "metadata.labels['batch.kubernetes.io/job-name']"


@dataclass(frozen=True, slots=True)
class ManualJob:
    """A job as somebody applies it.

    Args:
        name: of the Job, or CronJob, and its ConfigMap.
        kind: one of KINDS.
        spec: JobSpec, MergeSpec or EvaluationSpec.
        registry_address: "host:port" as the pod sees it.
        namespace: Kubernetes' namespace; "" leaves it to kubectl.
        graft_namespace: of the job, its adapter and its base.
        files: small files that lie beside the spec in the pod, at SPEC_DIR, by their names there.
        schedule: in cron's form; "" for a Job that runs once.
        time_zone: of the schedule, for example "Europe/Berlin"; "" for the cluster's.
        max_restarts: how often a worker that was lost is started again.
    """

    name: str
    kind: str
    spec: Message
    registry_address: str
    namespace: str = ""
    graft_namespace: str = DEFAULT_NAMESPACE
    files: Mapping[str, str] = field(default_factory=dict)
    schedule: str = ""
    time_zone: str = ""
    max_restarts: int = 3


def render_job(
    job: ManualJob, policy: PodPolicy, installed: Collection[Group] | None = None
) -> list[Manifest]:
    """What runs the job first (Job, CronJob, JobSet or TrainJob), then all that it needs.

    Args:
        installed: what the cluster has for several nodes; see choose_group().

    Raises:
        GraftError: INVALID_NAME; INVALID_REQUEST, for files that are too large, or a group that the policy
            does not allow; NOT_SUPPORTED, for a schedule of several nodes, or a group that is not installed.
    """
    size = size_of(job.spec) if isinstance(job.spec, JobSpec) else Size()
    group = choose_group(policy.several_nodes, size.group, size.nodes, installed)
    _check(job, size.nodes, group)
    if job.kind != "train":
        policy = replace(policy, command=(*policy.command, job.kind))
    made, *others = render_attempt(_plan(job, size, group), policy, group)
    for one in others:
        if one["kind"] == "ConfigMap":
            # Who applies it again with another spec shall be able to.
            del one["immutable"]
            one["data"] |= job.files
    return [_scheduled(made, job) if job.schedule else made, *others]


def _plan(job: ManualJob, size: Size, group: Group) -> AttemptPlan:
    own = job.name if group is Group.JOB else child_job_name(job.name)
    return AttemptPlan(
        job=job_name(job.graft_namespace, job.name),
        attempt=1,
        spec_json=MessageToJson(job.spec, preserving_proto_field_name=True, indent=2) + "\n",
        size=size,
        registry_address=job.registry_address,
        max_restarts=job.max_restarts,
        name=job.name,
        namespace=job.namespace,
        managed_by="graft-jobs",
        api_access=True,
        worker_env={JOB_VARIABLE: own},
    )


def nodes_of(job: ManualJob) -> int:
    """How many nodes a job has."""
    return size_of(job.spec).nodes if isinstance(job.spec, JobSpec) else 1


def _check(job: ManualJob, nodes: int, group: Group) -> None:
    if job.schedule and nodes > 1:
        raise GraftError(
            Reason.NOT_SUPPORTED,
            f"{job.name} has a schedule and {nodes} nodes, whose Service needs one Job's name",
            next_step="Leave out resources.nodes, or let a trainer run it.",
        )
    longest = f"{child_job_name(job.name)}-{nodes - 1}-abcde"
    if group is not Group.JOB and len(longest) > _LONGEST_HOST:
        raise GraftError(
            Reason.INVALID_NAME,
            f"{job.name!r} is too long for a {group.kind.name} of {nodes} nodes, whose pods add to it",
            next_step=f"Use at most {_LONGEST_HOST - len(longest) + len(job.name)} letters (--name).",
        )
    if _NAME.fullmatch(job.name) is None:
        raise GraftError(
            Reason.INVALID_NAME,
            f"{job.name!r} cannot be the name of a Job",
            next_step="Use 1 to 46 of a-z, 0-9 and '-', beginning with a letter and not ending with '-'.",
        )
    size_bytes = sum(len(text.encode()) for text in job.files.values())
    if size_bytes > MOST_DATA_BYTES:
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"The files of {job.name} have {size_bytes:,} bytes, and a ConfigMap has room for {MOST_DATA_BYTES:,}",
            next_step="Put the data on a volume, a bucket (s3://...) or the Hub (hf://...), or into the registry "
            "with `graft train --upload`.",
        )


def beside_spec(name: str) -> str:
    """The path, in the pod, of a file that lies beside the spec."""
    assert name != SPEC_KEY
    return f"{SPEC_DIR}/{name}"


def _scheduled(made: Manifest, job: ManualJob) -> Manifest:
    """A CronJob of a Job. Each of its Jobs has a name and a work folder of its own."""
    container = made["spec"]["template"]["spec"]["containers"][0]
    container["env"] = _named_by_its_job(container["env"], job.name)
    spec: dict[str, Any] = {"schedule": job.schedule}
    if job.time_zone:
        spec["timeZone"] = job.time_zone
    spec |= {
        # One that is late by more than this is left out.
        "startingDeadlineSeconds": 3600,
        "concurrencyPolicy": "Forbid",
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {
            "metadata": {
                "labels": made["metadata"]["labels"],
                # Whose job it is says each Job's own name.
                "annotations": {
                    key: text
                    for key, text in made["metadata"]["annotations"].items()
                    if not text.endswith(f"/jobs/{job.name}")
                },
            },
            "spec": made["spec"],
        },
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": made["metadata"],
        "spec": spec,
    }


def _named_by_its_job(env: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The variables with the name of the pod's Job, which only Kubernetes knows, in place of this one."""
    own = {"name": JOB_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": _JOB_NAME_LABEL}}}
    named = []
    for one in env:
        if one["name"] == JOB_VARIABLE:
            continue
        value = one.get("value", "")
        if value.endswith(f"/{name}"):
            # A variable is put into those that come after it.
            one = {**one, "value": f"{value.removesuffix(name)}$({JOB_VARIABLE})"}
        named.append(one)
    return [own, *named]
