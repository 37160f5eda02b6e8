"""The Job controller and its garbage collection, small: pods from Jobs, conditions from pods, owners' parts gone."""

from __future__ import annotations

import asyncio
import copy
import secrets
from collections import defaultdict
from typing import Any

from tests.support.kube_api.store import Entry, Object, Refused, Store, now

_LABEL = "batch.kubernetes.io/job-name"
_INDEX = "batch.kubernetes.io/job-completion-index"


def condition(one: Object, kind: str, status: str = "True") -> Object | None:
    """A condition of an object."""
    for found in one.get("status", {}).get("conditions", []):
        if found["type"] == kind and found["status"] == status:
            return dict(found)
    return None


def set_condition(one: Object, kind: str, status: str, reason: str = "", message: str = "") -> None:
    """Adds a condition or changes it."""
    conditions = one.setdefault("status", {}).setdefault("conditions", [])
    conditions[:] = [found for found in conditions if found["type"] != kind]
    conditions.append({"type": kind, "status": status, "reason": reason, "message": message})


def is_over(pod: Object) -> bool:
    """Whether a pod has ended."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


class JobController:
    """Keeps Jobs as their specs say.

    Args:
        store: the objects.
        admit: called with every new pod; raises Refused as a webhook or a quota would.

    Attributes:
        ran: every pod that was made, as (job, pod).
    """

    def __init__(self, store: Store, admit: Any) -> None:
        self._store, self._admit = store, admit
        self._pod_names: defaultdict[tuple[str, str], dict[str, None]] = defaultdict(dict)
        self._dirty: dict[tuple[str, str], None] = {}
        self._news = asyncio.Event()
        self.ran: list[tuple[str, str]] = []
        store.listen(self._heard)
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """Does nothing more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _heard(self, entry: Entry) -> None:
        meta = entry.one["metadata"]
        if entry.plural == "jobs":
            self._mark(meta["namespace"], meta["name"])
        elif entry.plural == "pods" and (job := (meta.get("labels") or {}).get(_LABEL)):
            names = self._pod_names[meta["namespace"], job]
            names[meta["name"]] = None
            if entry.kind == "DELETED":
                del names[meta["name"]]
            self._mark(meta["namespace"], job)

    def _mark(self, namespace: str, name: str) -> None:
        self._dirty[namespace, name] = None
        self._news.set()

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._dirty:
                namespace, name = next(iter(self._dirty))
                del self._dirty[namespace, name]
                job = self._store.find("jobs", namespace, name)
                if job is None:
                    self._collect(namespace, name)
                else:
                    self._reconcile(job)
                await asyncio.sleep(0)

    def _pods(self, namespace: str, name: str) -> list[Object]:
        names = self._pod_names[namespace, name]
        found = (self._store.find("pods", namespace, one) for one in names)
        return [pod for pod in found if pod is not None]

    def _collect(self, namespace: str, name: str) -> None:
        for pod in self._pods(namespace, name):
            self._end(pod)

    def _end(self, pod: Object) -> None:
        meta = pod["metadata"]
        if is_over(pod):
            self._store.remove("pods", meta["namespace"], meta["name"])
        elif "deletionTimestamp" not in meta:
            meta["deletionTimestamp"] = now()
            meta["deletionGracePeriodSeconds"] = pod["spec"].get(
                "terminationGracePeriodSeconds", 30
            )
            self._store.update("pods", pod)

    def _reconcile(self, job: Object) -> None:
        meta, spec = job["metadata"], job["spec"]
        namespace, name = meta["namespace"], meta["name"]
        pods = self._pods(namespace, name)
        if "deletionTimestamp" in meta:
            for pod in pods:
                self._end(pod)
            if not self._pods(namespace, name):
                self._store.remove("jobs", namespace, name)
            return
        if condition(job, "Complete") or condition(job, "Failed"):
            self._expire(job)
            return
        self._count(job, pods)
        living = [pod for pod in pods if not is_over(pod)]
        self._decide(job, pods)
        failure = condition(job, "FailureTarget")
        wanted = spec.get("completions", 1)
        if failure is not None:
            for pod in living:
                self._end(pod)
            if not living:
                set_condition(job, "Failed", "True", failure["reason"], failure["message"])
        elif condition(job, "SuccessCriteriaMet"):
            for pod in living:
                self._end(pod)
            if not living:
                message = "Matched rules at index 0"
                set_condition(job, "Complete", "True", "SuccessPolicy", message)
        elif job["status"]["succeeded"] >= wanted and not living:
            set_condition(job, "Complete", "True", "CompletionsReached", "Reached completions")
            job["status"]["completionTime"] = now()
        elif spec.get("suspend"):
            set_condition(job, "Suspended", "True", "JobSuspended", "Job suspended")
            for pod in living:
                self._end(pod)
        else:
            self._fill(job, pods, wanted)
        for pod in pods:
            # What the controller has counted may go.
            if is_over(pod) and "deletionTimestamp" in pod["metadata"]:
                self._store.remove("pods", namespace, pod["metadata"]["name"])
        self._store.update("jobs", job)

    def _decide(self, job: Object, pods: list[Object]) -> None:
        """How it will end, once: what its pods do afterwards changes nothing any more."""
        if condition(job, "FailureTarget") or condition(job, "SuccessCriteriaMet"):
            return
        if _by_policy(job["spec"], pods):
            set_condition(job, "SuccessCriteriaMet", "True", "SuccessPolicy")
        elif (failure := self._failure(job, pods)) is not None:
            set_condition(job, "FailureTarget", "True", *failure)

    def _count(self, job: Object, pods: list[Object]) -> None:
        """Pods that are gone stay counted."""
        status = job.setdefault("status", {})
        status.setdefault("startTime", now())
        for phase, name in (("Succeeded", "succeeded"), ("Failed", "failed")):
            uids = status.setdefault("counted", {}).setdefault(name, [])
            for pod in pods:
                if (
                    pod.get("status", {}).get("phase") == phase
                    and pod["metadata"]["uid"] not in uids
                ):
                    uids.append(pod["metadata"]["uid"])
            status[name] = len(uids)
        status["active"] = sum(not is_over(pod) for pod in pods)

    def _failure(self, job: Object, pods: list[Object]) -> tuple[str, str] | None:
        spec, counted = job["spec"], 0
        for pod in pods:
            if pod.get("status", {}).get("phase") != "Failed":
                continue
            action, message = _matched(spec, pod)
            if action == "FailJob":
                return "PodFailurePolicy", message
            counted += action == "Count"
        if counted > spec.get("backoffLimit", 6):
            return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        return None

    def _fill(self, job: Object, pods: list[Object], wanted: int) -> None:
        indexed = job["spec"].get("completionMode") == "Indexed"
        there = [pod for pod in pods if pod.get("status", {}).get("phase") != "Failed"]
        taken = {pod["metadata"].get("annotations", {}).get(_INDEX) for pod in there}
        missing = wanted - len(there)
        indexes = (
            [str(n) for n in range(wanted) if str(n) not in taken] if indexed else [""] * missing
        )
        for index in indexes:
            self._make_pod(job, index)

    def _make_pod(self, job: Object, index: str) -> None:
        meta, template = job["metadata"], copy.deepcopy(job["spec"]["template"])
        name = "-".join(filter(None, (meta["name"], index, secrets.token_hex(3)[:5])))
        labels = {
            **template["metadata"].get("labels", {}),
            _LABEL: meta["name"],
            "job-name": meta["name"],
        }
        annotations = dict(template["metadata"].get("annotations", {}))
        if index:
            annotations[_INDEX] = index
            template["spec"]["hostname"] = f"{meta['name']}-{index}"
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"]}
        pod: Object = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "labels": labels,
                "annotations": annotations,
                "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
            },
            "spec": template["spec"],
            "status": {"phase": "Pending"},
        }
        try:
            self._admit("pods", pod)
        except Refused as refused:
            message = f"Error creating: {refused.message}"
            self._tell(meta["namespace"], "Job", meta["name"], "FailedCreate", message)
            asyncio.get_running_loop().call_later(0.2, self._mark, meta["namespace"], meta["name"])
            return
        self._store.create("pods", meta["namespace"], pod)
        self.ran.append((meta["name"], name))

    def _tell(self, namespace: str, kind: str, name: str, reason: str, message: str) -> None:
        tell_event(self._store, namespace, kind, name, reason, message)

    def _expire(self, job: Object) -> None:
        if job["spec"].get("ttlSecondsAfterFinished") == 0:
            job["metadata"]["deletionTimestamp"] = now()
            self._store.update("jobs", job)


def tell_event(
    store: Store, namespace: str, kind: str, name: str, reason: str, message: str
) -> None:
    """A warning event about an object."""
    event: Object = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{name}.{secrets.token_hex(6)}"},
        "involvedObject": {"kind": kind, "namespace": namespace, "name": name},
        "type": "Warning",
        "reason": reason,
        "message": message,
    }
    store.create("events", namespace, event)


def _by_policy(spec: Object, pods: list[Object]) -> bool:
    """Whether the indexes that matter have succeeded."""
    for rule in (spec.get("successPolicy") or {}).get("rules", []):
        wanted = str(rule["succeededIndexes"])
        for pod in pods:
            index = pod["metadata"].get("annotations", {}).get(_INDEX)
            if index == wanted and pod.get("status", {}).get("phase") == "Succeeded":
                return True
    return False


def _matched(spec: Object, pod: Object) -> tuple[str, str]:
    """The action of the first rule that a failed pod matches, and the controller's words for it."""
    name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    for index, rule in enumerate((spec.get("podFailurePolicy") or {}).get("rules", [])):
        end = f"matching {rule['action']} rule at index {index}"
        if "onExitCodes" in rule:
            for status in pod["status"].get("containerStatuses", []):
                code = status["state"].get("terminated", {}).get("exitCode", 0)
                wanted = rule["onExitCodes"]
                inside = code in wanted["values"]
                if code and inside == (wanted["operator"] == "In"):
                    message = f"Container {status['name']} for pod {name} failed with exit code {code} {end}"
                    return rule["action"], message
        for wanted in rule.get("onPodConditions", []):
            if condition(pod, wanted["type"], wanted["status"]):
                return rule["action"], f"Pod {name} has condition {wanted['type']} {end}"
    return "Count", ""
