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
        for part in one["spec"]["replicatedJobs"]:
            name = f"{meta['name']}-{part['name']}-0"
            check_job(name, part["template"]["spec"])


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
