"""Starts workers as Kubernetes Jobs, and knows of all of them by one list and one watch per kind."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from graft.errors import GraftError, Reason
from graft.kubernetes.job_template import render_attempt, wants_jobset
from graft.kubernetes.names import (
    ATTEMPT_LABEL,
    JOB_LABEL,
    NAMESPACE_LABEL,
    TOKEN_ANNOTATION,
    attempt_object_name,
    token_digest,
)
from graft.kubernetes.pod_policy import PodPolicies
from graft.kubernetes.pod_template import AttemptPlan, Size, size_of
from graft.names import namespace_of
from graft.spec_file import spec_from_dict

from services.common.logs import get_logger
from services.trainer.launchers.base import Launch, Launcher, Worker
from services.trainer.launchers.kubernetes.api import (
    EVENTS,
    JOBS,
    JOBSETS,
    PODS,
    Api,
    ApiError,
    Kind,
    Object,
)
from services.trainer.launchers.kubernetes.connect import connect
from services.trainer.launchers.kubernetes.mirror import Mirror
from services.trainer.launchers.kubernetes.objects import Objects
from services.trainer.launchers.kubernetes.reading import (
    end_condition,
    kept_of_job,
    kept_of_pod,
)
from services.trainer.launchers.kubernetes.words import TELLING
from services.trainer.launchers.kubernetes.worker import KubernetesWorker
from services.trainer.spec.job import MAX_NODES

MANAGED_BY = "graft-trainer"
_NOT_FOUND, _FORBIDDEN = 404, 403
_REGARDING = (JOBS.name, JOBSETS.name)
_POD_NAME = re.compile(r"(graft-.*-[0-9a-f]{10}-[0-9]+)-")


class KubernetesLauncher(Launcher):
    """Launcher of Jobs.

    Args:
        policies: how pods are made.
        namespace: of Kubernetes; "" for the pod's own, or the kubeconfig's.
        instance: tells this trainer's Jobs from another's in the same namespace.
        kubeconfig: None inside of the cluster.
        context: of the kubeconfig; "" for its current one.
    """

    def __init__(
        self,
        policies: PodPolicies,
        *,
        namespace: str = "",
        instance: str = "graft",
        kubeconfig: Path | None = None,
        context: str = "",
    ) -> None:
        self._policies, self._instance = policies, instance
        self._namespace, self._kubeconfig, self._context = namespace, kubeconfig, context
        self._workers: dict[str, KubernetesWorker] = {}
        # Jobs whose end is stored, until they are gone.
        self._released: set[str] = set()
        self._warnings: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self._mirrors: dict[Kind, Mirror] = {}
        self._pods: defaultdict[str, dict[str, Object]] = defaultdict(dict)
        self._tasks: set[asyncio.Task[None]] = set()
        self._api: Api | None = None
        self._recovered = False

    @property
    def outlived(self) -> bool:
        return True

    @property
    def max_nodes(self) -> int:
        return MAX_NODES

    @property
    def calls(self) -> int:
        """How many requests were sent to the API server."""
        return self._api.calls if self._api else 0

    async def open(self) -> None:
        connection = await connect(self._kubeconfig, self._context, self._namespace)
        self._api = Api(connection)
        self._objects = Objects(self._api)
        try:
            for mirror in await self._make_mirrors(self._api):
                await mirror.open()
        except ApiError as error:
            raise _closed(error, connection.namespace) from None

    async def _make_mirrors(self, api: Api) -> list[Mirror]:
        """Pods before Jobs: where a Job's end is known, its pods' is."""
        ours = (
            "labelSelector",
            f"app.kubernetes.io/managed-by={MANAGED_BY},app.kubernetes.io/instance={self._instance}",
        )
        warnings = ("fieldSelector", "type=Warning")
        self._mirrors[EVENTS] = Mirror(api, EVENTS, warnings, self._told_of_event, _kept_of_event)
        self._mirrors[PODS] = Mirror(api, PODS, ours, self._told_of_pod, kept_of_pod)
        for kind in (JOBS, JOBSETS) if await self._has_jobsets(api) else (JOBS,):
            told = self._told_of(kind)
            self._mirrors[kind] = Mirror(api, kind, ours, told, kept_of_job)
        return list(self._mirrors.values())

    async def _has_jobsets(self, api: Api) -> bool:
        """Whether the cluster has JobSet and we may use it."""
        try:
            path = JOBSETS.path(api.namespace)
            await api.call("GET", path, query=[("limit", "1")], patience_s=60.0)
        except ApiError as error:
            if error.status not in (_NOT_FOUND, _FORBIDDEN):
                raise
            return False
        return True

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for mirror in self._mirrors.values():
            await mirror.close()
        if self._api is not None:
            await self._api.close()

    async def start(self, launch: Launch) -> Worker:
        worker = self._worker(launch)
        worker.create()
        return worker

    async def find(self, launch: Launch, handle: str) -> Worker | None:
        name = handle or attempt_object_name(launch.job, launch.attempt)
        if (known := self._workers.get(name)) is not None:
            return known if _has_token(known.first, launch.token) else None
        job = self._find_job(name)
        if job is None or name in self._released or _is_stored(job):
            return None
        if not _has_token(job, launch.token):
            return None
        worker = self._worker(launch)
        worker.adopt(job, list(self._pods[name].values()) if name in self._pods else [])
        return worker

    async def recovered(self) -> None:
        self._recovered = True
        for kind in (JOBS, JOBSETS):
            for job in self._mirrors.get(kind, ()):
                self._look_after(kind, job)

    def _worker(self, launch: Launch) -> KubernetesWorker:
        policy = self._policies.of(namespace_of(launch.job))
        assert self._api is not None
        size = Size()
        if launch.kind == "train":
            size = size_of(spec_from_dict(json.loads(launch.spec_json)))
        else:
            policy = replace(policy, command=(*policy.command, launch.kind))
        plan = AttemptPlan(
            job=launch.job,
            attempt=launch.attempt,
            spec_json=launch.spec_json,
            size=size,
            trainer_address=launch.trainer_address,
            token=launch.token,
            registry_address=launch.registry_address,
            namespace=self._api.namespace,
            instance=self._instance,
            managed_by=MANAGED_BY,
        )
        jobset = wants_jobset(policy, size.nodes, JOBSETS in self._mirrors)
        manifests = render_attempt(plan, policy, jobset)
        name = manifests[0]["metadata"]["name"]
        worker = KubernetesWorker(
            name,
            JOBSETS if jobset else JOBS,
            manifests,
            size.nodes,
            policy.keep_s,
            self._objects,
            self._warnings[name],
            self._spawn,
            lambda: self._release(name),
        )
        self._workers[name] = worker
        return worker

    def _release(self, name: str) -> None:
        self._workers.pop(name, None)
        self._warnings.pop(name, None)
        if self._find_job(name) is not None:
            self._released.add(name)

    def _find_job(self, name: str) -> Object | None:
        found = (
            mirror.get(name) for kind, mirror in self._mirrors.items() if kind in (JOBS, JOBSETS)
        )
        return next((one for one in found if one is not None), None)

    def _told_of(self, kind: Kind) -> Any:
        def told(job: Object, deleted: bool) -> None:
            name = job["metadata"]["name"]
            worker = self._workers.get(name)
            if worker is not None:
                worker.see_job(job, deleted)
            elif deleted:
                self._released.discard(name)
                self._warnings.pop(name, None)
            elif self._recovered:
                self._look_after(kind, job)

        return told

    def _told_of_pod(self, pod: Object, deleted: bool) -> None:
        name, uid = _name_of(pod), pod["metadata"]["uid"]
        if not deleted:
            self._pods[name][uid] = pod
        elif name in self._pods:
            self._pods[name].pop(uid, None)
            if not self._pods[name]:
                del self._pods[name]
        if (worker := self._workers.get(name)) is not None:
            worker.see_pod(pod, deleted)

    def _told_of_event(self, event: Object, deleted: bool) -> None:
        if deleted or event["reason"] not in TELLING:
            return
        name = _regarding(event["involvedObject"])
        if name:
            self._warnings[name][event["reason"]] = event["message"]
            if (worker := self._workers.get(name)) is not None:
                worker.see_warning()

    def _look_after(self, kind: Kind, job: Object) -> None:
        """Removes a Job of ours that nobody attends: its attempt is over, or nobody knows it."""
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        if name in self._workers or name in self._released or _is_stored(job):
            return
        if job["metadata"].get("ownerReferences"):
            return  # Part of something else, which is looked after.
        self._released.add(name)
        ended = end_condition(job) is not None
        get_logger().info("job of no attempt", name=name, ended=ended)
        if ended and kind is JOBS:
            keep_s = self._policies.default.keep_s
            self._spawn(self._objects.expire(kind, name, keep_s))
        else:
            self._spawn(self._remove(kind, name, uid))

    async def _remove(self, kind: Kind, name: str, uid: str) -> None:
        await self._objects.delete(kind, name, uid)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        async def run() -> None:
            try:
                await work
            except ApiError as error:
                get_logger().error("call to the Kubernetes API failed", error=error.message)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            get_logger().error("work on the cluster failed", exc_info=error)


def _has_token(job: Object, token: str) -> bool:
    annotations = job["metadata"].get("annotations") or {}
    return bool(annotations.get(TOKEN_ANNOTATION) == token_digest(token))


def _is_stored(job: Object) -> bool:
    """Whether its end was stored: only then is it given a time to go."""
    return "ttlSecondsAfterFinished" in job.get("spec", {})


def _name_of(pod: Object) -> str:
    """The name of the Job or JobSet that a pod belongs to, from its labels."""
    labels = pod["metadata"].get("labels") or {}
    try:
        job = f"namespaces/{labels[NAMESPACE_LABEL]}/jobs/{labels[JOB_LABEL]}"
        return attempt_object_name(job, int(labels[ATTEMPT_LABEL]))
    except (KeyError, ValueError, GraftError):
        return ""


def _regarding(regarding: Object) -> str:
    """The name of the Job or JobSet that an event is about, directly or by one of its parts."""
    kind, name = regarding.get("kind", ""), str(regarding.get("name", ""))
    if not name.startswith(("graft-", "job-graft-", "jobset-graft-")):
        return ""
    if kind in _REGARDING:
        return name
    if kind == PODS.name:
        return _attempt_of(name)
    if kind == "Workload":
        # Kueue's name for it: "{kind}-{name}-{digest}".
        return name.partition("-")[2].rpartition("-")[0]
    return ""


def _attempt_of(pod: str) -> str:
    """The attempt's name in that of one of its pods: "graft-{job}-{digest}-{attempt}-..."."""
    match = _POD_NAME.match(pod)
    return match[1] if match else ""


def _kept_of_event(event: Object) -> Object:
    meta, regarding = event["metadata"], event.get("involvedObject") or {}
    return {
        "metadata": {name: meta.get(name, "") for name in ("name", "uid", "resourceVersion")},
        "involvedObject": {name: regarding.get(name, "") for name in ("kind", "name")},
        "reason": event.get("reason", ""),
        "message": event.get("message", ""),
    }


def _closed(error: ApiError, namespace: str) -> GraftError:
    if error.status == _FORBIDDEN:
        return GraftError(
            Reason.PERMISSION_DENIED,
            f"The trainer may not work in the namespace {namespace}: {error.message}",
            next_step="Give its service account the Role of deploy/k8s/base.",
        )
    return GraftError(
        Reason.UNAVAILABLE,
        f"The Kubernetes API does not answer as it should: {error.message}",
        next_step="Check that the API server can be reached from the trainer, and start it again.",
    )
