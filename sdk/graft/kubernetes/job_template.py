"""The Kubernetes objects of one attempt of a training job: pure functions from a plan and a policy.

With a trainer, one attempt is one Job with one go: whether another follows is the trainer's decision, so
a second pod of the same attempt must never be. Without one, the Job itself starts its worker again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graft.kubernetes.group_template import (
    Manifest,
    Meta,
    child_job_name,
    jobset,
    suspended,
    train_job,
)
from graft.kubernetes.groups import Group
from graft.kubernetes.kinds import CLAIMS, RUNTIMES
from graft.kubernetes.names import (
    QUEUE_LABEL,
    TOKEN_ANNOTATION,
    attempt_labels,
    attempt_object_name,
    token_digest,
)
from graft.kubernetes.pod_policy import PodPolicy
from graft.kubernetes.pod_template import (
    CONTAINER,
    SPEC_KEY,
    TOKEN_KEY,
    AttemptPlan,
    Rendezvous,
    pod_template,
)
from graft.kubernetes.work_claim import with_own_claim, work_claim

__all__ = [
    "Manifest",
    "before_owner",
    "in_order",
    "outlives_owner",
    "owned",
    "reference",
    "render_attempt",
]

# services/trainer/run/exits.py. Trying these again would end the same way.
_HOPELESS = [64, 65, 66, 67, 79]
_PREEMPTED = 75


def render_attempt(
    plan: AttemptPlan, policy: PodPolicy, group: Group = Group.JOB
) -> list[Manifest]:
    """The objects of an attempt, without an owner: what runs it first, then what it and its pods need.

    Args:
        plan: the attempt.
        policy: of the operator.
        group: what several nodes are together; see choose_group().

    Returns:
        A Job, JobSet or TrainJob; with a TrainJob its TrainingRuntime; a ConfigMap with the spec; with a
        token a Secret; with an Indexed Job of several nodes a headless Service; where each job has a claim of
        its own, that.

    Raises:
        GraftError: INVALID_NAME; INVALID_REQUEST, for a claim that several nodes cannot share.
    """
    name = plan.name or attempt_object_name(plan.job, plan.attempt)
    labels = attempt_labels(plan.job, plan.attempt, plan.instance, plan.managed_by, policy.labels)
    meta = Meta(plan, name, labels)
    claim = [work_claim(plan, policy)] if policy.work.per_job else []
    policy = with_own_claim(plan, policy)
    several = plan.size.nodes > 1
    group = group if several else Group.JOB
    template = pod_template(plan, policy, name, labels, _rendezvous(name, group, several))
    job_spec = _job_spec(plan, policy, template)
    about = _owner_metadata(plan, policy, meta)
    if group is Group.TRAINJOB:
        objects = train_job(plan, policy, meta, about, job_spec)
    elif group is Group.JOBSET:
        objects = [jobset(plan, policy, meta, about, job_spec)]
    else:
        objects = [_job(policy, about, job_spec)]
    objects.append(_config_map(plan, meta))
    if plan.token:
        objects.append(_secret(plan, meta))
    if several and group is Group.JOB:
        objects.append(_service(policy, meta))
    return [*objects, *claim]


def before_owner(manifest: Mapping[str, Any]) -> bool:
    """Whether an object of an attempt must be there before what runs it."""
    return bool(manifest["kind"] == RUNTIMES.name)


def outlives_owner(manifest: Mapping[str, Any]) -> bool:
    """Whether an object of an attempt is the job's, and no attempt's own."""
    return bool(manifest["kind"] == CLAIMS.name)


def in_order(manifests: Sequence[Manifest]) -> list[Manifest]:
    """The objects as somebody has to apply them one after the other."""
    return sorted(manifests, key=lambda one: not before_owner(one))


def owned(manifest: Manifest, owner: Mapping[str, Any]) -> Manifest:
    """The manifest as part of an object that exists: it goes when its owner goes.

    Args:
        owner: as the API server answered, with apiVersion, kind, metadata.name and metadata.uid.
    """
    return {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [reference(owner)]}}


def reference(owner: Mapping[str, Any]) -> Manifest:
    """What an owned object says of its owner."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        # A pod's controller is the Job; of these objects nobody is.
        "controller": False,
        "blockOwnerDeletion": False,
    }


def _job(policy: PodPolicy, about: Manifest, job_spec: Manifest) -> Manifest:
    spec = {**suspended(policy), **job_spec}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": about, "spec": spec}


def _owner_metadata(plan: AttemptPlan, policy: PodPolicy, meta: Meta) -> Manifest:
    annotations = dict(policy.annotations)
    if plan.token:
        annotations[TOKEN_ANNOTATION] = token_digest(plan.token)
    return meta.of({QUEUE_LABEL: policy.queue} if policy.queue else {}, annotations)


def _job_spec(plan: AttemptPlan, policy: PodPolicy, template: Manifest) -> Manifest:
    """The spec of a Job; no ttlSecondsAfterFinished: an end that is not stored yet must not vanish."""
    nodes = plan.size.nodes
    spec: Manifest = {
        # One process of several that is lost takes the others along: each of them counts.
        "backoffLimit": 0 if plan.attended else plan.max_restarts * nodes,
        "completions": nodes,
        "parallelism": nodes,
        "completionMode": "Indexed" if nodes > 1 else "NonIndexed",
        # A pod that still ends must not run beside the one after it.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _attended_rules() if plan.attended else _alone_rules()},
    }
    if nodes > 1:
        # The first one publishes; the others are there as long as it needs them.
        spec["successPolicy"] = {"rules": [{"succeededIndexes": "0"}]}
    if policy.deadline_s:
        spec["activeDeadlineSeconds"] = policy.deadline_s
    return {**spec, "template": template}


def _attended_rules() -> list[Manifest]:
    """Any end ends the Job; which, stays in its conditions also when the pod is gone.

    A disruption is no failure: the trainer starts the next attempt and does not count this one.
    """
    return [
        {"action": "FailJob", "onExitCodes": _exit_codes("In", [*_HOPELESS[:-1], 70, 75, 79])},
        {"action": "FailJob", "onPodConditions": [_DISRUPTED]},
        {"action": "FailJob", "onExitCodes": _exit_codes("NotIn", [0])},
    ]


def _alone_rules() -> list[Manifest]:
    return [
        {"action": "FailJob", "onExitCodes": _exit_codes("In", _HOPELESS)},
        {"action": "Ignore", "onPodConditions": [_DISRUPTED]},
        {"action": "Ignore", "onExitCodes": _exit_codes("In", [_PREEMPTED])},
    ]


_DISRUPTED = {"type": "DisruptionTarget", "status": "True"}


def _exit_codes(operator: str, values: list[int]) -> Manifest:
    # The API server wants them in order.
    return {"containerName": CONTAINER, "operator": operator, "values": sorted(values)}


def _rendezvous(name: str, group: Group, several: bool) -> Rendezvous | None:
    if not several:
        return None
    if group is Group.JOB:
        return Rendezvous(f"{name}-0.{name}", name)
    # JobSet names its pods' hosts {set}-{replicated job}-{job}-{pod} in a subdomain of its own name, and sets
    # the subdomain itself; a TrainJob's JobSet has the TrainJob's name.
    return Rendezvous(f"{child_job_name(name)}-0.{name}", "")


def _config_map(plan: AttemptPlan, meta: Meta) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": meta.of(),
        "immutable": True,
        "data": {SPEC_KEY: plan.spec_json},
    }


def _secret(plan: AttemptPlan, meta: Meta) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": meta.of(),
        "type": "Opaque",
        "immutable": True,
        "stringData": {TOKEN_KEY: plan.token},
    }


def _service(policy: PodPolicy, meta: Meta) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta.of(),
        "spec": {
            "clusterIP": "None",
            # The processes find each other before any of them is ready.
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": meta.name},
            "ports": [
                {
                    "name": "rendezvous",
                    "port": policy.rendezvous_port,
                    "targetPort": policy.rendezvous_port,
                    "protocol": "TCP",
                }
            ],
        },
    }
