"""Several nodes as a JobSet, or as Kubeflow's TrainJob: pure functions from a Job's spec to what wraps it.

A TrainJob runs a JobSet that a TrainingRuntime describes. Ours is one of the attempt's own with the whole pod
in it: what a TrainJob may override has other names in each version of Kubeflow Trainer, a runtime's template
has been the same in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graft.kubernetes.kinds import JOBSETS, RUNTIMES, TRAIN_JOBS
from graft.kubernetes.names import JOB_ANNOTATION
from graft.kubernetes.pod_policy import PodPolicy
from graft.kubernetes.pod_template import CONTAINER, AttemptPlan

Manifest = dict[str, Any]

REPLICATED = "node"
# What Kubeflow's webhook wants the container of a trainer to be called, and its Job to be labelled.
TRAIN_CONTAINER = "node"
_ANCESTOR = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}


class Meta:
    """What every object of an attempt says about itself."""

    def __init__(self, plan: AttemptPlan, name: str, labels: Mapping[str, str]) -> None:
        self.name, self.labels = name, labels
        self._plan = plan

    def of(
        self, labels: Mapping[str, str] | None = None, annotations: Mapping[str, str] | None = None
    ) -> Manifest:
        """metadata, with further labels and annotations."""
        meta: Manifest = {"name": self.name}
        if self._plan.namespace:
            meta["namespace"] = self._plan.namespace
        meta["labels"] = {**self.labels, **(labels or {})}
        meta["annotations"] = {JOB_ANNOTATION: self._plan.job, **(annotations or {})}
        return meta


def child_job_name(name: str) -> str:
    """The name of the Job that a JobSet of ours makes."""
    return f"{name}-{REPLICATED}-0"


def suspended(policy: PodPolicy) -> Manifest:
    """Kueue lets it go on once there is room; its webhook would set the same."""
    return {"suspend": True} if policy.queue else {}


def jobset(
    plan: AttemptPlan, policy: PodPolicy, meta: Meta, about: Manifest, job_spec: Manifest
) -> Manifest:
    """A JobSet of one Indexed Job."""
    spec = {**suspended(policy), **_set_spec(plan, meta.labels, job_spec)}
    return _manifest(JOBSETS.api_version, JOBSETS.name, about, spec)


def train_job(
    plan: AttemptPlan, policy: PodPolicy, meta: Meta, about: Manifest, job_spec: Manifest
) -> list[Manifest]:
    """A TrainJob, and the TrainingRuntime that must be there before it."""
    nodes = {"numNodes": plan.size.nodes}
    spec = _set_spec(plan, {**meta.labels, **_ANCESTOR}, _with_container(job_spec))
    runtime = {"mlPolicy": nodes, "template": {"spec": spec}}
    reference = {
        "apiGroup": RUNTIMES.api_version.partition("/")[0],
        "kind": RUNTIMES.name,
        "name": meta.name,
    }
    wanted = {**suspended(policy), "runtimeRef": reference, "trainer": nodes}
    return [
        _manifest(TRAIN_JOBS.api_version, TRAIN_JOBS.name, about, wanted),
        _manifest(RUNTIMES.api_version, RUNTIMES.name, meta.of(), runtime),
    ]


def _manifest(api_version: str, kind: str, metadata: Manifest, spec: Manifest) -> Manifest:
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec}


def _set_spec(plan: AttemptPlan, labels: Mapping[str, str], job_spec: Manifest) -> Manifest:
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": _failure_policy(plan),
        "replicatedJobs": [
            {
                "name": REPLICATED,
                "replicas": 1,
                # The Job is labelled: how it ended says more than what its JobSet makes of it.
                "template": {
                    "metadata": {"labels": dict(labels)},
                    "spec": {**job_spec, "backoffLimit": 0},
                },
            }
        ],
    }


def _failure_policy(plan: AttemptPlan) -> Manifest:
    if plan.attended:
        return {"maxRestarts": 0}
    hopeless = {
        "name": "hopeless",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {"maxRestarts": plan.max_restarts, "rules": [hopeless]}


def _with_container(job_spec: Manifest) -> Manifest:
    """The Job's spec with the worker's container, and the rules about it, under Kubeflow's name."""
    template = job_spec["template"]
    containers = [
        {**one, "name": TRAIN_CONTAINER} if one["name"] == CONTAINER else one
        for one in template["spec"]["containers"]
    ]
    spec = {**template["spec"], "containers": containers}
    rules = [
        {**rule, "onExitCodes": {**rule["onExitCodes"], "containerName": TRAIN_CONTAINER}}
        if "onExitCodes" in rule
        else rule
        for rule in job_spec["podFailurePolicy"]["rules"]
    ]
    return {
        **job_spec,
        "podFailurePolicy": {"rules": rules},
        "template": {**template, "spec": spec},
    }
