"""What a real API server refuses of Jobs and their like; as its validation says, as far as ours use it."""

from __future__ import annotations

import re
from typing import Any

from tests.support.kube_api.store import Object, Refused

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_SERVICE = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_MUTABLE = ("suspend", "ttlSecondsAfterFinished", "activeDeadlineSeconds", "backoffLimit")


def check_new(kind: str, one: Object) -> None:
    """Raises Refused 422 for what cannot be created."""
    meta = one["metadata"]
    pattern, longest = (_SERVICE, 63) if kind == "Service" else (_NAME, 253)
    _check(len(meta["name"]) <= longest and bool(pattern.fullmatch(meta["name"])), "metadata.name")
    for value in (meta.get("labels") or {}).values():
        _check(len(value) <= 63 and bool(_LABEL.fullmatch(value)), "metadata.labels")
    for value in (meta.get("annotations") or {}).values():
        _check(isinstance(value, str), "metadata.annotations")
    if kind == "Job":
        check_job(meta["name"], one["spec"])
    if kind == "JobSet":
        check_set(meta["name"], one["spec"])
    if kind == "TrainJob":
        _check(bool(_SERVICE.fullmatch(meta["name"])) and len(meta["name"]) <= 63, "metadata.name")
    if kind == "TrainingRuntime":
        check_set(meta["name"], one["spec"]["template"]["spec"])
        for part in one["spec"]["template"]["spec"]["replicatedJobs"]:
            _check_trainer(part)


def check_set(name: str, spec: Object) -> None:
    """Raises Refused 422 for a JobSet that cannot be created: JobSet's webhook and schema."""
    for part in spec["replicatedJobs"]:
        inner = part["template"]["spec"]
        job = f"{name}-{part['name']}-{part.get('replicas', 1) - 1}"
        check_job(job, inner)
        pod = f"{job}-{inner['completions'] - 1}-abcde"
        _check(len(pod) <= 63, "JobSet name must be shorter; pod names will exceed 63 characters")
    for rule in (spec.get("failurePolicy") or {}).get("rules") or []:
        _check(rule.get("name") and rule.get("action"), "failurePolicy.rules: name and action")


def _check_trainer(part: Object) -> None:
    """Kubeflow's webhook of runtimes."""
    labels = part["template"].get("metadata", {}).get("labels", {})
    pod = part["template"]["spec"]["template"]["spec"]
    trains = labels.get("trainer.kubeflow.org/trainjob-ancestor-step") == "trainer"
    _check(part.get("replicas") == 1, "replicas: always must be 1")
    _check(trains or "priorityClassName" not in pod, "priorityClassName: must not be set")
    names = {one["name"] for one in pod["containers"]}
    _check(not trains or "node" in names, "must contain the required container: node")


def check_job(name: str, spec: Object) -> None:
    """Raises Refused 422 for a Job that cannot be created."""
    pod = spec["template"]["spec"]
    if spec.get("completionMode") == "Indexed":
        _check(len(f"{name}-{spec['completions'] - 1}") <= 63, "metadata.name with an index")
    rules = (spec.get("podFailurePolicy") or {}).get("rules", [])
    _check(not rules or pod.get("restartPolicy") == "Never", "spec.podFailurePolicy")
    _check(
        not rules or spec.get("podReplacementPolicy", "Failed") == "Failed",
        "spec.podReplacementPolicy",
    )
    names = {one["name"] for one in pod["containers"]}
    for rule in rules:
        _check(("onExitCodes" in rule) != ("onPodConditions" in rule), "rules: one of both")
        codes = rule.get("onExitCodes")
        if codes:
            values = codes["values"]
            _check(values == sorted(set(values)), "onExitCodes.values: must be ordered")
            _check(codes["operator"] == "NotIn" or 0 not in values, "onExitCodes.values: 0 with In")
            _check(codes["containerName"] in names, "onExitCodes.containerName")
    _check_volumes(pod)


def _check_volumes(pod: Object) -> None:
    volumes = [one["name"] for one in pod.get("volumes", [])]
    _check(len(volumes) == len(set(volumes)), "volumes: names are unique")
    for container in pod["containers"]:
        for mount in container.get("volumeMounts", []):
            _check(mount["name"] in volumes, f"volumeMounts: {mount['name']}")
        for variable in container.get("env", []):
            _check(isinstance(variable.get("value", ""), str), f"env: {variable['name']}")


def check_update(plural: str, before: Object, after: Object) -> None:
    """Raises Refused 422 for a change of what must stay."""
    if plural != "jobs":
        return
    for name in {*before["spec"], *after["spec"]} - set(_MUTABLE):
        _check(before["spec"].get(name) == after["spec"].get(name), f"spec.{name}: immutable")


def _check(holds: Any, what: str) -> None:
    if not holds:
        raise Refused(422, "Invalid", f"{what}: Invalid value")
