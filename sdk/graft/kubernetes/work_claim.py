"""A volume of each job's own for its checkpoints: it is there for every attempt, on whichever node that runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from graft.errors import GraftError, Reason
from graft.kubernetes.kinds import CLAIMS
from graft.kubernetes.names import ATTEMPT_LABEL, JOB_ANNOTATION, attempt_labels, job_object_name
from graft.kubernetes.pod_policy import PodPolicy, WorkStorage
from graft.kubernetes.pod_template import AttemptPlan


def claim_name(plan: AttemptPlan) -> str:
    """The name of a job's claim. Raises GraftError INVALID_NAME."""
    return plan.name or job_object_name(plan.job)


def with_own_claim(plan: AttemptPlan, policy: PodPolicy) -> PodPolicy:
    """The policy with the job's own claim named, where it has one."""
    if not policy.work.per_job:
        return policy
    return replace(policy, work=WorkStorage(claim=claim_name(plan)))


def work_claim(plan: AttemptPlan, policy: PodPolicy) -> dict[str, Any]:
    """The claim of a job.

    Raises:
        GraftError: INVALID_REQUEST, where one node alone could mount it and the job has several.
    """
    work = policy.work
    if plan.size.nodes > 1 and work.access_mode != "ReadWriteMany":
        raise GraftError(
            Reason.INVALID_REQUEST,
            f"{plan.job} has {plan.size.nodes} nodes, and the pod policy gives each job a claim that is "
            f"{work.access_mode}",
            next_step="Set work.access_mode to ReadWriteMany, with a storage class that can do so, or leave "
            "out resources.nodes.",
        )
    labels = attempt_labels(plan.job, plan.attempt, plan.instance, plan.managed_by, policy.labels)
    # It is no attempt's.
    del labels[ATTEMPT_LABEL]
    spec: dict[str, Any] = {
        "accessModes": [work.access_mode],
        "resources": {"requests": {"storage": work.per_job}},
    }
    if work.storage_class:
        spec["storageClassName"] = work.storage_class
    return {
        "apiVersion": CLAIMS.api_version,
        "kind": CLAIMS.name,
        "metadata": {
            "name": claim_name(plan),
            **({"namespace": plan.namespace} if plan.namespace else {}),
            "labels": labels,
            "annotations": {JOB_ANNOTATION: plan.job},
        },
        "spec": spec,
    }
