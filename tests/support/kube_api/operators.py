"""JobSet's and Kubeflow Trainer's controllers, small: as far as what Graft makes of them is concerned."""

from __future__ import annotations

import copy

from tests.support.kube_api.controller import condition, set_condition, tell_event
from tests.support.kube_api.garbage import Controller, end_later
from tests.support.kube_api.store import Object, Store

SET_NAME = "jobset.sigs.k8s.io/jobset-name"
_ANCESTOR = "trainer.kubeflow.org/trainjob-ancestor-step"


def owner_of(one: Object, api_version: str, kind: str) -> Object:
    """What a part says of the object that controls it."""
    meta = one["metadata"]
    about = {"apiVersion": api_version, "kind": kind, "name": meta["name"], "uid": meta["uid"]}
    return {**about, "controller": True, "blockOwnerDeletion": True}


class JobSetController(Controller):
    """Jobs from JobSets; a failed Job restarts all of them or fails the set."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, "jobsets", "jobs")

    def reconcile(self, one: Object) -> None:
        """See Controller."""
        meta, spec = one["metadata"], one["spec"]
        jobs = self._jobs(one)
        if "deletionTimestamp" in meta:
            for job in jobs:
                end_later(self.store, "jobs", job)
            if not jobs:
                self.store.remove("jobsets", meta["namespace"], meta["name"])
            return
        if condition(one, "Completed") or condition(one, "Failed"):
            if spec.get("ttlSecondsAfterFinished") == 0:
                end_later(self.store, "jobsets", one)
            return
        failed = [job for job in jobs if condition(job, "Failed")]
        if failed:
            self._fail(one, failed[0], jobs)
        elif jobs and all(condition(job, "Complete") for job in jobs):
            set_condition(
                one, "Completed", "True", "AllJobsCompleted", "jobset completed successfully"
            )
        else:
            self._fill(one, jobs)
        self.store.update("jobsets", one)

    def _jobs(self, one: Object) -> list[Object]:
        uid = one["metadata"]["uid"]
        found = self.store.all(
            "jobs", lambda job: job["metadata"]["labels"].get(SET_NAME) is not None
        )
        return [
            copy.deepcopy(job)
            for job in found
            if any(owner["uid"] == uid for owner in job["metadata"]["ownerReferences"])
        ]

    def _fail(self, one: Object, failed: Object, jobs: list[Object]) -> None:
        policy, reason = one["spec"].get("failurePolicy") or {}, condition(failed, "Failed")
        assert reason is not None
        first = f"(first failed job: {failed['metadata']['name']})"
        for rule in policy.get("rules") or []:
            wanted = rule.get("onJobFailureReasons")
            if rule["action"] == "FailJobSet" and (not wanted or reason["reason"] in wanted):
                message = f"jobset failed due to FailJobSet failure policy action {first}"
                set_condition(one, "Failed", "True", "FailJobSetFailurePolicyAction", message)
                self._end_active(jobs)
                return
        restarts = one.setdefault("status", {}).setdefault("restarts", 0)
        if restarts < policy.get("maxRestarts", 0):
            if not any("deletionTimestamp" in job["metadata"] for job in jobs):
                one["status"]["restarts"] = restarts + 1
            for job in jobs:
                end_later(self.store, "jobs", job)
            return
        message = f"jobset failed due to reaching max number of restarts {first}"
        set_condition(one, "Failed", "True", "ReachedMaxRestarts", message)
        self._end_active(jobs)

    def _end_active(self, jobs: list[Object]) -> None:
        for job in jobs:
            if not condition(job, "Failed") and not condition(job, "Complete"):
                end_later(self.store, "jobs", job)

    def _fill(self, one: Object, jobs: list[Object]) -> None:
        meta, suspended = one["metadata"], bool(one["spec"].get("suspend"))
        set_condition(one, "Suspended", str(suspended), "Suspended" if suspended else "Resumed")
        there = {job["metadata"]["name"]: job for job in jobs}
        for part in one["spec"]["replicatedJobs"]:
            for index in range(part.get("replicas", 1)):
                name = f"{meta['name']}-{part['name']}-{index}"
                if name not in there:
                    self.store.create("jobs", meta["namespace"], self._job(one, part, name))
                elif bool(there[name]["spec"].get("suspend")) != suspended:
                    there[name]["spec"]["suspend"] = suspended
                    self.store.update("jobs", there[name])

    def _job(self, one: Object, part: Object, name: str) -> Object:
        template = copy.deepcopy(part["template"])
        labels = {
            **template.get("metadata", {}).get("labels", {}),
            SET_NAME: one["metadata"]["name"],
        }
        spec = {**template["spec"], "suspend": bool(one["spec"].get("suspend"))}
        spec["template"]["spec"]["subdomain"] = one["metadata"]["name"]
        owner = owner_of(one, "jobset.x-k8s.io/v1alpha2", "JobSet")
        meta = {"name": name, "labels": labels, "ownerReferences": [owner]}
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}


class TrainJobController(Controller):
    """A JobSet from each TrainJob and its TrainingRuntime, whose end is the TrainJob's."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, "trainjobs", "jobsets")

    def reconcile(self, one: Object) -> None:
        """See Controller."""
        meta = one["metadata"]
        found = self.store.find("jobsets", meta["namespace"], meta["name"])
        if "deletionTimestamp" in meta:
            if found is None:
                self.store.remove("trainjobs", meta["namespace"], meta["name"])
            else:
                end_later(self.store, "jobsets", found)
            return
        if condition(one, "Complete") or condition(one, "Failed"):
            return
        suspended = bool(one["spec"].get("suspend"))
        if found is None:
            self._make(one, suspended)
            return
        for theirs, ours in (("Completed", "Complete"), ("Failed", "Failed")):
            if (end := condition(found, theirs)) is not None:
                set_condition(one, ours, "True", end["reason"], end["message"])
        if bool(found["spec"].get("suspend")) != suspended:
            found["spec"]["suspend"] = suspended
            self.store.update("jobsets", found)
        self.store.update("trainjobs", one)

    def _make(self, one: Object, suspended: bool) -> None:
        meta, reference = one["metadata"], one["spec"]["runtimeRef"]
        assert reference["kind"] == "TrainingRuntime", "ours have runtimes of their own"
        runtime = self.store.find("trainingruntimes", meta["namespace"], reference["name"])
        if runtime is None:
            message = "TrainJob resources reconciliation failed: runtime not found"
            tell_event(
                self.store, meta["namespace"], "TrainJob", meta["name"],
                "TrainJobResourcesCreationFailed", message,
            )  # fmt: skip
            return
        spec = copy.deepcopy(runtime["spec"]["template"]["spec"])
        nodes = (one["spec"].get("trainer") or {}).get("numNodes")
        for part in spec["replicatedJobs"]:
            labels = part["template"].get("metadata", {}).get("labels", {})
            if labels.get(_ANCESTOR) == "trainer" and nodes:
                part["template"]["spec"] |= {"parallelism": nodes, "completions": nodes}
        jobset = {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {
                "name": meta["name"],
                "labels": runtime["spec"]["template"].get("metadata", {}).get("labels", {}),
                "ownerReferences": [owner_of(one, "trainer.kubeflow.org/v1alpha1", "TrainJob")],
            },
            "spec": {**spec, "suspend": suspended},
        }
        self.store.create("jobsets", meta["namespace"], jobset)


def run_now(store: Store, cron: Object, minute: int) -> Object:
    """What the CronJob controller creates when the time has come.

    Args:
        minute: since 1970, of when it was due.
    """
    meta, template = cron["metadata"], copy.deepcopy(cron["spec"]["jobTemplate"])
    made = {
        "name": f"{meta['name']}-{minute}",
        "labels": template["metadata"]["labels"],
        "annotations": template["metadata"]["annotations"],
        "ownerReferences": [owner_of(cron, "batch/v1", "CronJob")],
    }
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": made, "spec": template["spec"]}
    return store.create("jobs", meta["namespace"], job)
