"""The Kubernetes objects of one attempt of a training job: pure functions from a plan and a policy.

With a trainer, one attempt is one Job with one go: whether another follows is the trainer's decision, so
a second pod of the same attempt must never be. Without one, the Job itself starts its worker again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graft.kubernetes.names import (
    JOB_ANNOTATION,
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

Manifest = dict[str, Any]

JOBSET_API = "jobset.x-k8s.io/v1alpha2"
_REPLICATED = "nodes"
# services/trainer/run/exits.py. Trying these again would end the same way.
_HOPELESS = [64, 65, 66, 67, 79]
_PREEMPTED = 75


def render_attempt(plan: AttemptPlan, policy: PodPolicy, jobset: bool = False) -> list[Manifest]:
    """The objects of an attempt, without an owner: what runs it first, then what its pods need.

    Args:
        plan: the attempt.
        policy: of the operator.
        jobset: with several nodes, a JobSet instead of an Indexed Job and its Service; see wants_jobset().

    Returns:
        A Job or JobSet, a ConfigMap with the spec, with a token a Secret, with an Indexed Job of several
        nodes a headless Service.

    Raises:
        GraftError: INVALID_NAME.
    """
    name = plan.name or attempt_object_name(plan.job, plan.attempt)
    labels = attempt_labels(plan.job, plan.attempt, plan.instance, plan.managed_by, policy.labels)
    several = plan.size.nodes > 1
    as_jobset = jobset and several
    rendezvous = _rendezvous(name, as_jobset) if several else None
    template = pod_template(plan, policy, name, labels, rendezvous)
    meta = _Meta(plan, name, labels)
    objects = [
        _jobset(plan, policy, meta, template) if as_jobset else _job(plan, policy, meta, template),
        _config_map(plan, meta),
    ]
    if plan.token:
        objects.append(_secret(plan, meta))
    if several and not as_jobset:
        objects.append(_service(policy, meta))
    return objects


def wants_jobset(policy: PodPolicy, nodes: int, installed: bool) -> bool:
    """Whether several nodes are to be a JobSet, given what the cluster has."""
    if nodes == 1 or policy.several_nodes == "job":
        return False
    return installed or policy.several_nodes == "jobset"


def owned(manifest: Manifest, owner: Mapping[str, Any]) -> Manifest:
    """The manifest as part of an object that exists: it goes when its owner goes.

    Args:
        owner: as the API server answered, with apiVersion, kind, metadata.name and metadata.uid.
    """
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        # A pod's controller is the Job; of these objects nobody is.
        "controller": False,
        "blockOwnerDeletion": False,
    }
    return {**manifest, "metadata": {**manifest["metadata"], "ownerReferences": [reference]}}


class _Meta:
    """What every object of an attempt says about itself."""

    def __init__(self, plan: AttemptPlan, name: str, labels: Mapping[str, str]) -> None:
        self.name = name
        self._plan, self._labels = plan, labels

    def of(
        self, labels: Mapping[str, str] | None = None, annotations: Mapping[str, str] | None = None
    ) -> Manifest:
        """metadata, with further labels and annotations."""
        meta: Manifest = {"name": self.name}
        if self._plan.namespace:
            meta["namespace"] = self._plan.namespace
        meta["labels"] = {**self._labels, **(labels or {})}
        meta["annotations"] = {JOB_ANNOTATION: self._plan.job, **(annotations or {})}
        return meta


def _job(plan: AttemptPlan, policy: PodPolicy, meta: _Meta, template: Manifest) -> Manifest:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _owner_metadata(plan, policy, meta),
        "spec": {**_suspended(policy), **_job_spec(plan, policy, template)},
    }


def _owner_metadata(plan: AttemptPlan, policy: PodPolicy, meta: _Meta) -> Manifest:
    annotations = dict(policy.annotations)
    if plan.token:
        annotations[TOKEN_ANNOTATION] = token_digest(plan.token)
    return meta.of({QUEUE_LABEL: policy.queue} if policy.queue else {}, annotations)


def _suspended(policy: PodPolicy) -> Manifest:
    # Kueue lets it go on once there is room; its webhook would set the same.
    return {"suspend": True} if policy.queue else {}


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


def _jobset(plan: AttemptPlan, policy: PodPolicy, meta: _Meta, template: Manifest) -> Manifest:
    return {
        "apiVersion": JOBSET_API,
        "kind": "JobSet",
        "metadata": _owner_metadata(plan, policy, meta),
        "spec": {
            **_suspended(policy),
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": _set_failure_policy(plan),
            "replicatedJobs": [
                {
                    "name": _REPLICATED,
                    "replicas": 1,
                    # Without our labels: the JobSet is what is looked after, not the Jobs that it makes.
                    "template": {
                        "spec": _job_spec(plan, policy, template) | {"backoffLimit": 0},
                    },
                }
            ],
        },
    }


def _set_failure_policy(plan: AttemptPlan) -> Manifest:
    if plan.attended:
        return {"maxRestarts": 0}
    hopeless = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {"maxRestarts": plan.max_restarts, "rules": [hopeless]}


def _rendezvous(name: str, as_jobset: bool) -> Rendezvous:
    if as_jobset:
        # JobSet names its pods' hosts {set}-{replicated job}-{job}-{pod} in a subdomain of its own name,
        # and sets the subdomain itself.
        return Rendezvous(f"{name}-{_REPLICATED}-0-0.{name}", "")
    return Rendezvous(f"{name}-0.{name}", name)


def _config_map(plan: AttemptPlan, meta: _Meta) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": meta.of(),
        "immutable": True,
        "data": {SPEC_KEY: plan.spec_json},
    }


def _secret(plan: AttemptPlan, meta: _Meta) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": meta.of(),
        "type": "Opaque",
        "immutable": True,
        "stringData": {TOKEN_KEY: plan.token},
    }


def _service(policy: PodPolicy, meta: _Meta) -> Manifest:
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
