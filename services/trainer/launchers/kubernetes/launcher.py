"""Starts workers as Kubernetes Jobs, JobSets or TrainJobs, and finds them again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from graft.errors import GraftError, Reason
from graft.kubernetes.api import Api, ApiError, Object
from graft.kubernetes.connect import connect
from graft.kubernetes.groups import Group, choose_group
from graft.kubernetes.job_template import render_attempt
from graft.kubernetes.kinds import Kind
from graft.kubernetes.names import (
    JOB_ANNOTATION,
    TOKEN_ANNOTATION,
    attempt_object_name,
    job_object_name,
    token_digest,
)
from graft.kubernetes.pod_policy import PodPolicies, PodPolicy
from graft.kubernetes.pod_template import AttemptPlan, Size, size_of
from graft.names import namespace_of
from graft.spec_file import spec_from_dict

from services.common.logs import get_logger
from services.trainer.launchers.base import Launch, Launcher, Worker
from services.trainer.launchers.kubernetes.kinds import EXPIRING
from services.trainer.launchers.kubernetes.objects import Objects
from services.trainer.launchers.kubernetes.reading import end_condition, is_over
from services.trainer.launchers.kubernetes.view import MANAGED_BY, View
from services.trainer.launchers.kubernetes.worker import KubernetesWorker
from services.trainer.spec.job import MAX_NODES

_FORBIDDEN = 403
_ADVICE = (
    "Run the trainer in a pod with a service account, or set GRAFT_TRAINER_KUBERNETES_KUBECONFIG to a "
    "kubeconfig file."
)


class KubernetesLauncher(Launcher):
    """Launcher of Jobs; also a view.Seer.

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
        connection = await connect(
            self._kubeconfig, self._context, self._namespace, pod_first=True, advice=_ADVICE
        )
        self._api = Api(connection)
        self._objects = Objects(self._api)
        self._view = View(self._api, self._instance, self._policies.queued, self)
        try:
            await self._view.open()
        except ApiError as error:
            raise _closed(error, connection.namespace) from None

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._api is not None:
            await self._view.close()
            await self._api.close()

    async def start(self, launch: Launch) -> Worker:
        policy, size = self._policies.of(namespace_of(launch.job)), _size_of(launch)
        try:
            group = choose_group(policy.several_nodes, size.group, size.nodes, self._view.groups)
            worker = self._worker(launch, policy, size, group)
        except GraftError as error:
            # Another group, policy or spec than this would be another job.
            plain = self._worker(launch, PodPolicy(), size, Group.JOB)
            plain.refuse(str(error))
            return plain
        worker.create()
        return worker

    async def find(self, launch: Launch, handle: str) -> Worker | None:
        name = handle or attempt_object_name(launch.job, launch.attempt)
        if (known := self._workers.get(name)) is not None:
            return known if _has_token(known.first, launch.token) else None
        found = self._view.find(name)
        if name in self._released:
            return None
        if found is None:
            return await self._find_rest(launch, name)
        kind, job = found
        if _is_stored(job) or not _has_token(job, launch.token):
            return None
        policy = self._policies.of(namespace_of(launch.job))
        group = next(group for group in Group if group.kind is kind)
        worker = self._worker(launch, policy, _size_of(launch), group)
        worker.adopt(job, self._view.pods(name), self._view.parts(name))
        return worker

    async def _find_rest(self, launch: Launch, name: str) -> Worker | None:
        """An attempt whose Job is gone, while a pod of it still runs: the next attempt has to wait for that."""
        policy = self._policies.of(namespace_of(launch.job))
        worker = self._worker(launch, policy, _size_of(launch), Group.JOB)
        try:
            pods = await self._objects.pods_of(worker.first)
        except ApiError as error:
            get_logger().warning("pods not found", name=name, error=error.message)
            pods = self._view.pods(name)
        if all(is_over(pod) for pod in pods):
            self._workers.pop(name, None)
            return None
        worker.adopt_rest(pods)
        return worker

    async def recovered(self, open_jobs: Collection[str] | None = None) -> None:
        self._recovered = True
        for kind, job in self._view:
            self._look_after(kind, job)
        if Group.TRAINJOB in self._view.groups:
            self._spawn(self._objects.drop_runtimes(self._view.selector, self._workers))
        if open_jobs is not None and self._policies.with_own_claims:
            kept = {job_object_name(job) for job in open_jobs}
            self._spawn(self._objects.drop_claims(self._view.selector, kept))

    async def forget(self, job: str, attempt: int) -> None:
        if self._policies.of(namespace_of(job)).work.per_job:
            found = self._view.find(attempt_object_name(job, attempt))
            owner = None
            if found is not None and found[0] in EXPIRING:
                kind, last = found
                owner = {**last, "apiVersion": kind.api_version, "kind": kind.name}
            self._spawn(self._objects.let_claim_go(job_object_name(job), owner))

    def _worker(
        self, launch: Launch, policy: PodPolicy, size: Size, group: Group
    ) -> KubernetesWorker:
        assert self._api is not None
        if launch.kind != "train":
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
        manifests = render_attempt(plan, policy, group)
        name = manifests[0]["metadata"]["name"]
        worker = KubernetesWorker(
            name,
            group,
            manifests,
            size.nodes,
            policy.keep_s,
            self._objects,
            self._view.told[name],
            self._spawn,
            lambda: self._release(name),
        )
        self._workers[name] = worker
        return worker

    def _release(self, name: str) -> None:
        self._workers.pop(name, None)
        self._view.told.pop(name, None)
        if self._view.find(name) is not None:
            self._released.add(name)

    def see_job(self, kind: Kind, job: Object, deleted: bool) -> None:
        """What runs an attempt is new, another, or gone."""
        name = job["metadata"]["name"]
        if (worker := self._workers.get(name)) is not None:
            worker.see_job(job, deleted)
        elif deleted:
            self._released.discard(name)
            self._view.told.pop(name, None)
        elif self._recovered:
            self._look_after(kind, job)

    def see_part(self, name: str, job: Object) -> None:
        """A Job that a JobSet made is new or another."""
        if (worker := self._workers.get(name)) is not None:
            worker.see_part(job)

    def see_pod(self, name: str, pod: Object, deleted: bool) -> None:
        """A pod is new, another, or gone."""
        if (worker := self._workers.get(name)) is not None:
            worker.see_pod(pod, deleted)

    def see_words(self, name: str) -> None:
        """There is something else to tell of an attempt."""
        if (worker := self._workers.get(name)) is not None:
            worker.see_warning()

    def _look_after(self, kind: Kind, job: Object) -> None:
        """Removes what nobody attends: its attempt is over, or nobody knows it."""
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        if name in self._workers or name in self._released or _is_stored(job):
            return
        if job["metadata"].get("ownerReferences"):
            return  # Part of something else, which is looked after.
        self._released.add(name)
        ended = end_condition(job) is not None
        get_logger().info("job of no attempt", name=name, ended=ended)
        if ended and kind in EXPIRING:
            about = (job["metadata"].get("annotations") or {}).get(JOB_ANNOTATION, "")
            policy = self._policies.of(namespace_of(about)) if about else self._policies.default
            self._spawn(self._objects.expire(kind, name, policy.keep_s))
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


def _size_of(launch: Launch) -> Size:
    if launch.kind != "train":
        return Size()
    return size_of(spec_from_dict(json.loads(launch.spec_json)))


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
