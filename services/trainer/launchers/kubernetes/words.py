"""Says in words where an attempt stands on the cluster: why it waits, or where it runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from graft.kubernetes.api import ApiError, Object
from graft.kubernetes.names import QUEUE_LABEL

from services.trainer.launchers.kubernetes.reading import CONTAINERS, has_begun, is_over

# Reasons of events that say what keeps an attempt from running.
TELLING = frozenset(
    {
        "FailedCreate",
        "FailedMount",
        "FailedAttachVolume",
        "FailedCreatePodSandBox",
        "Pending",
        "ProvisioningFailed",
    }
)
# What its queue says, among what is told of an attempt.
QUEUE = "Queue"
_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_SET_UP = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_SHORT_OF = re.compile(r"Insufficient ([a-z0-9./_-]+[a-z0-9])")
_TAINT = re.compile(r"untolerated taint \{([^}:]+)")
_THINGS = {"cpu": "CPU", "memory": "memory", "ephemeral-storage": "disk", "pods": "room for pods"}
_LONGEST = 400


def standing(
    job: Object | None, pods: Sequence[Object], told: Mapping[str, str], hindrance: ApiError | None
) -> str:
    """A sentence on where an attempt stands; "" where there is nothing to say.

    Args:
        job: its Job or JobSet; None before it exists.
        pods: of it.
        told: messages of warning events, by their reason; the last of each; and its queue's, as QUEUE.
        hindrance: what the API server said to the last try to create it.
    """
    if job is None:
        return _not_created(hindrance)
    living = [pod for pod in pods if not is_over(pod)]
    if not living:
        return "" if pods else _without_pod(job, told)
    waiting = next((pod for pod in living if not has_begun(pod)), None)
    if waiting is not None:
        return _waiting(waiting, told)
    nodes = sorted({pod["spec"]["nodeName"] for pod in living if pod["spec"].get("nodeName")})
    return f"Runs on {' and '.join(nodes)}" if nodes else ""


def _not_created(hindrance: ApiError | None) -> str:
    if hindrance is None:
        return ""
    if "exceeded quota" in hindrance.message:
        return f"Waits for the namespace's quota: {_short(hindrance.message)}"
    return f"Waits for the Kubernetes API: {_short(hindrance.message)}"


def _without_pod(job: Object, told: Mapping[str, str]) -> str:
    if job.get("spec", {}).get("suspend"):
        queue = job["metadata"].get("labels", {}).get(QUEUE_LABEL, "")
        says = told.get(QUEUE) or told.get("Pending", "")
        why = f": {_short(says)}" if says else ""
        if queue:
            return f"Waits in the queue {queue} of Kueue{why}"
        return "Its Job is suspended; it starts once somebody resumes it"
    if "FailedCreate" not in told:
        return ""
    message = told["FailedCreate"]
    if "exceeded quota" in message:
        return f"Waits for the namespace's quota: {_short(message)}"
    return f"Kubernetes refuses its pod: {_short(message)}"


def _waiting(pod: Object, told: Mapping[str, str]) -> str:
    status = pod.get("status", {})
    for found in status.get("conditions") or []:
        if found.get("type") == "PodScheduled" and found.get("status") == "False":
            return _unscheduled(found)
    for one in status.get("containerStatuses") or []:
        waiting = (one.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        message = _short(waiting.get("message") or reason)
        if reason in _IMAGE:
            image = one.get("image") or "its image"
            return f"The image {image} cannot be pulled: {message}"
        if reason in _SET_UP and one.get("name") in CONTAINERS:
            return f"Its container cannot be started: {message}"
    for reason in ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"):
        if reason in told:
            what = "Its pod's network" if reason == "FailedCreatePodSandBox" else "A volume"
            return f"{what} cannot be set up: {_short(told[reason])}"
    node = pod["spec"].get("nodeName", "")
    return f"Starts on {node}" if node else ""


def _unscheduled(found: Mapping[str, str]) -> str:
    message = found.get("message", "")
    if found.get("reason") == "SchedulingGated":
        return "Its pod waits for a scheduling gate to be lifted"
    if "unbound" in message and "PersistentVolumeClaim" in message:
        return f"A volume of its pod is not bound yet: {_short(message)}"
    short = [_thing(name) for name in dict.fromkeys(_SHORT_OF.findall(message))]
    if short:
        return f"No node has enough {' and '.join(short)} free: {_short(message)}"
    if taints := list(dict.fromkeys(_TAINT.findall(message))):
        return f"Its pod does not tolerate the taint {' and '.join(taints)}: {_short(message)}"
    return f"No node can take its pod: {_short(message)}"


def _thing(resource: str) -> str:
    if resource.endswith("/gpu"):
        return f"GPUs ({resource})"
    return _THINGS.get(resource, resource)


def _short(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
