"""What a Job, a JobSet and their pods say: whether they have ended and how. Pure functions of plain mappings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from graft.kubernetes.api import Object
from graft.kubernetes.group_template import TRAIN_CONTAINER
from graft.kubernetes.pod_template import CONTAINER

from services.trainer.convert import left_report
from services.trainer.jobs import Finished
from services.trainer.launchers.base import Remains
from services.trainer.states import FailureCause
from services.trainer.verdict import CAUSE_BY_EXIT_CODE, EXIT_CANCELLED, EXIT_PREEMPTED

# What the worker's container is called: a TrainJob's has Kubeflow's name.
CONTAINERS = (CONTAINER, TRAIN_CONTAINER)
_SUCCEEDED, _FAILED = ("Complete", "Completed"), "Failed"
# How the Job controller says which exit code its pod failure policy matched.
_EXIT_CODE = re.compile(r"failed with exit code (\d+)")
_DISRUPTED = "has condition DisruptionTarget"
_INDEX = "batch.kubernetes.io/job-completion-index"
_SIGNALS_FROM, _PREEMPTED = 128, EXIT_PREEMPTED
_WITHOUT_POD = "Its pod is gone, and with it the name of the version: the registry has it"


def kept_of_pod(pod: Object) -> Object:
    """What is needed of a pod; thousands of them are kept."""
    meta, spec = pod["metadata"], pod.get("spec", {})
    names = ("name", "uid", "resourceVersion", "labels", "deletionTimestamp")
    return {
        "metadata": {name: meta[name] for name in names if name in meta}
        | {"annotations": {_INDEX: (meta.get("annotations") or {}).get(_INDEX, "0")}},
        "spec": {"nodeName": spec.get("nodeName", "")},
        "status": pod.get("status", {}),
    }


def kept_of_job(job: Object) -> Object:
    """What is needed of a Job or JobSet."""
    meta, spec = job["metadata"], job.get("spec", {})
    names = (
        *("name", "uid", "resourceVersion", "deletionTimestamp"),
        *("labels", "annotations", "ownerReferences"),
    )
    return {
        "metadata": {name: meta[name] for name in names if name in meta},
        "spec": {
            name: spec[name] for name in ("suspend", "ttlSecondsAfterFinished") if name in spec
        },
        "status": job.get("status", {}),
    }


def kept_of_event(event: Object) -> Object:
    """What is needed of an event."""
    meta, regarding = event["metadata"], event.get("involvedObject") or {}
    return {
        "metadata": {name: meta.get(name, "") for name in ("name", "uid", "resourceVersion")},
        "involvedObject": {name: regarding.get(name, "") for name in ("kind", "name")},
        "reason": event.get("reason", ""),
        "message": event.get("message", ""),
    }


def kept_of_workload(workload: Object) -> Object:
    """What is needed of a Workload of Kueue's."""
    meta = workload["metadata"]
    names = ("name", "uid", "resourceVersion", "ownerReferences")
    conditions = workload.get("status", {}).get("conditions") or []
    return {
        "metadata": {name: meta[name] for name in names if name in meta},
        "status": {"conditions": conditions},
    }


def queue_condition(workload: Object) -> str:
    """Why Kueue does not let a workload run, in its words; "" where it does, or has said nothing yet."""
    if condition(workload, "Admitted") is not None:
        return ""
    evicted = condition(workload, "Evicted") or {}
    found = {one["type"]: one for one in workload["status"]["conditions"]}
    for kind in ("QuotaReserved", "Admitted"):
        one = found.get(kind, {})
        if one.get("status") == "False" and one.get("message"):
            return str(one["message"])
    return str(evicted.get("message", ""))


def condition(one: Object, kind: str) -> Mapping[str, str] | None:
    """A condition of an object that is true."""
    for found in one.get("status", {}).get("conditions") or []:
        if found.get("type") == kind and found.get("status") == "True":
            return dict(found)
    return None


def end_condition(job: Object) -> Mapping[str, str] | None:
    """The condition that says that a Job or JobSet has ended."""
    for kind in (*_SUCCEEDED, _FAILED):
        if (found := condition(job, kind)) is not None:
            return found
    return None


def is_over(pod: Object) -> bool:
    """Whether nothing of a pod runs any more."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def has_begun(pod: Object) -> bool:
    """Whether a pod's worker runs or ran."""
    return "running" in _state(pod) or "terminated" in _state(pod)


def exit_code_of(pod: Object) -> int | None:
    """The exit code of a pod's worker, negative for a signal; None where it has none."""
    ended = _state(pod).get("terminated")
    return None if ended is None else _signed(int(ended.get("exitCode", 0)))


def end_of(
    job: Object | None, pods: Sequence[Object], parts: Iterable[Object] = ()
) -> tuple[int | None, Remains]:
    """The exit code of an attempt and what is known beside it.

    Args:
        job: as it was last seen; None where it was never.
        pods: of the attempt, also those that are gone, as they were last seen.
        parts: Jobs that its JobSet made: why one failed, its JobSet does not say.
    """
    condition_ = (end_condition(job) if job is not None else None) or {}
    if condition_.get("type") not in _SUCCEEDED:
        condition_ = next(filter(None, (condition(one, _FAILED) for one in parts)), condition_)
    reason, said = condition_.get("reason", ""), condition_.get("message", "")
    succeeded = condition_.get("type") in _SUCCEEDED
    pod = _telling(pods, succeeded)
    code = exit_code_of(pod) if pod is not None and not succeeded else None
    if code is None and (match := _EXIT_CODE.search(said)):
        code = _signed(int(match[1]))
    if succeeded:
        # Nodes that were ended once the first had succeeded have codes of their own.
        code = 0
    if reason == "DeadlineExceeded":
        return code, Remains(finished=_too_long(said))
    disruption = next(filter(None, (condition(one, "DisruptionTarget") for one in pods)), None)
    disrupted = code != 0 and (disruption is not None or _DISRUPTED in said)
    because = _because(pod, disruption, said)
    finished = _last_report(pods)
    if finished is None and pod is None and code == 0:
        finished = Finished(message=_WITHOUT_POD)
    if finished is None and _state(pod).get("terminated", {}).get("reason") == "OOMKilled":
        finished = _out_of_memory()
    if len(pods) > 1 and pod is not None and code and (finished is None or finished.preempted):
        finished = _by_one_of_many(pod, code)
    return code, Remains(finished, disrupted, because, _log_tail(pod))


def _telling(pods: Sequence[Object], succeeded: bool) -> Object | None:
    """The pod whose end is the attempt's: of several the one that failed, else the first node's.

    A node that lost another ends as if it had been preempted: that says nothing of why.
    """
    ended = [one for one in pods if "terminated" in _state(one)]
    failed = [one for one in ended if exit_code_of(one) and not succeeded]
    candidates = failed or ended or list(pods)
    return min(
        candidates, key=lambda pod: (exit_code_of(pod) == _PREEMPTED, _index(pod)), default=None
    )


def _index(pod: Object) -> int:
    text = (pod["metadata"].get("annotations") or {}).get(_INDEX, "0")
    return int(text) if text.isdigit() else 0


def _state(pod: Object | None) -> Object:
    """The state of the worker's container."""
    for status in (pod or {}).get("status", {}).get("containerStatuses") or []:
        if status.get("name") in CONTAINERS:
            return dict(status.get("state") or {})
    return {}


def _signed(code: int) -> int:
    """A shell's way to say a signal, as the trainer says it."""
    return _SIGNALS_FROM - code if code > _SIGNALS_FROM else code


def _last_report(pods: Iterable[Object]) -> Finished | None:
    for pod in sorted(pods, key=_index):
        message = str(_state(pod).get("terminated", {}).get("message", ""))
        if message.startswith("{") and (report := left_report(message)) is not None:
            return report
    return None


def _log_tail(pod: Object | None) -> str:
    message = str(_state(pod).get("terminated", {}).get("message", ""))
    if message.startswith("{"):
        return ""
    lines = (line.strip() for line in reversed(message.splitlines()))
    return next((line for line in lines if line), "")


def _because(pod: Object | None, disruption: Mapping[str, str] | None, said: str) -> str:
    if disruption is not None:
        return disruption.get("message") or disruption.get("reason", "")
    status = (pod or {}).get("status", {})
    if status.get("reason"):
        return ": ".join(filter(None, (status["reason"], status.get("message", ""))))
    if _EXIT_CODE.search(said):
        return ""
    return said


def _by_one_of_many(pod: Object, code: int) -> Finished | None:
    """Why a node made the others stop, of whom the first, which reports, only knows that it had to."""
    if code in (_PREEMPTED, EXIT_CANCELLED):
        return None
    cause = CAUSE_BY_EXIT_CODE.get(code, FailureCause.NODE_LOST)
    said = f": {tail}" if (tail := _log_tail(pod)) else ""
    return Finished(cause=cause, message=f"Node {_index(pod)} ended with code {code}{said}")


def _out_of_memory() -> Finished:
    return Finished(
        cause=FailureCause.OUT_OF_MEMORY,
        message="The worker used more than the memory limit of its pod. Raise limits.memory in the pod "
        "policy, lower micro_batch_size or max_length_tokens, or quantize the base with nf4.",
    )


def _too_long(said: str) -> Finished:
    return Finished(
        cause=FailureCause.INTERNAL,
        message=f"The attempt took longer than it may ({said}). Raise deadline_s in the pod policy and "
        "create the job again: it goes on from its last checkpoint.",
    )
