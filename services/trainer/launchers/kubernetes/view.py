"""What the cluster has of this trainer's: one list and one watch per kind, told attempt by attempt."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

from graft.errors import GraftError
from graft.kubernetes.api import Api, ApiError, Object
from graft.kubernetes.groups import GROUPS, Group
from graft.kubernetes.kinds import EVENTS, JOBS, PODS, WORKLOADS, Kind
from graft.kubernetes.names import ATTEMPT_LABEL, JOB_LABEL, NAMESPACE_LABEL, attempt_object_name

from services.common.logs import get_logger
from services.trainer.launchers.kubernetes.kinds import OWNERS
from services.trainer.launchers.kubernetes.mirror import Mirror
from services.trainer.launchers.kubernetes.reading import (
    kept_of_event,
    kept_of_job,
    kept_of_pod,
    kept_of_workload,
    queue_condition,
)
from services.trainer.launchers.kubernetes.words import QUEUE, TELLING

MANAGED_BY = "graft-trainer"
_FORBIDDEN = 403
_OPENING_PATIENCE_S = 60.0
_REGARDING = tuple(one.name for one in OWNERS)
_POD_NAME = re.compile(r"(graft-.*-[0-9a-f]{10}-[0-9]+)-")
_NAMED = ("graft-", *(f"{one.name.lower()}-graft-" for one in OWNERS))
# Kueue's, the newest first.
_QUEUE_VERSIONS = (WORKLOADS.api_version, "kueue.x-k8s.io/v1beta1")


class Seer(Protocol):
    """Who is told."""

    def see_job(self, kind: Kind, job: Object, deleted: bool) -> None:
        """What runs an attempt is new, another, or gone."""

    def see_part(self, name: str, job: Object) -> None:
        """A Job that the attempt's JobSet or TrainJob made is new or another."""

    def see_pod(self, name: str, pod: Object, deleted: bool) -> None:
        """A pod of an attempt is new, another, or gone."""

    def see_words(self, name: str) -> None:
        """Something else is told of an attempt; see View.told."""


class View:
    """The objects of one trainer in one namespace.

    Args:
        api: calls to the cluster.
        instance: which trainer's.
        queued: whether Kueue's queues are used.
        seer: told of all of them.

    Attributes:
        told: by attempt: messages of warning events by their reason, and of its queue as QUEUE.
        groups: what several nodes may be here.
    """

    def __init__(self, api: Api, instance: str, queued: bool, seer: Seer) -> None:
        self._api, self._instance, self._queued, self._seer = api, instance, queued, seer
        self.told: defaultdict[str, dict[str, str]] = defaultdict(dict)
        self.groups: tuple[Group, ...] = ()
        self._mirrors: dict[Kind, Mirror] = {}
        self._pods: defaultdict[str, dict[str, Object]] = defaultdict(dict)

    @property
    def selector(self) -> tuple[str, str]:
        """Selects what is this trainer's."""
        return (
            "labelSelector",
            f"app.kubernetes.io/managed-by={MANAGED_BY},app.kubernetes.io/instance={self._instance}",
        )

    async def open(self) -> None:
        """Lists everything, and watches from there on. Raises ApiError."""
        warnings = ("fieldSelector", "type=Warning")
        await self._look(EVENTS, warnings, self._told_of_event, kept_of_event)
        await self._look_at_queues()
        # Pods before Jobs: where a Job's end is known, its pods' is.
        await self._look(PODS, self.selector, self._told_of_pod, kept_of_pod)
        await self._look(JOBS, self.selector, self._told_of_owner(JOBS), kept_of_job)
        groups = [Group.JOB]
        for group in GROUPS:
            if group is not Group.JOB and await self._has(group.kind):
                groups.append(group)
        self.groups = tuple(groups)

    async def close(self) -> None:
        """Watches no more."""
        for mirror in self._mirrors.values():
            await mirror.close()

    def find(self, name: str) -> tuple[Kind, Object] | None:
        """What runs an attempt."""
        for kind in OWNERS:
            if kind in self._mirrors and (found := self._mirrors[kind].get(name)) is not None:
                return kind, found
        return None

    def __iter__(self) -> Iterator[tuple[Kind, Object]]:
        """Everything that runs an attempt."""
        for kind in OWNERS:
            for job in self._mirrors.get(kind, ()):
                yield kind, job

    def pods(self, name: str) -> list[Object]:
        """The pods of an attempt."""
        return list(self._pods[name].values()) if name in self._pods else []

    def parts(self, name: str) -> list[Object]:
        """The Jobs that an attempt's JobSet or TrainJob made."""
        return [job for job in self._mirrors[JOBS] if part_of(job) == name]

    async def _look(
        self,
        kind: Kind,
        selector: tuple[str, str],
        told: Callable[[Object, bool], None],
        kept: Callable[[Object], Object],
    ) -> None:
        mirror = Mirror(self._api, kind, selector, told, kept)
        await mirror.open()
        self._mirrors[kind] = mirror

    async def _has(self, kind: Kind) -> bool:
        """Whether the cluster has a kind and we may use it; then it is watched."""
        if not await self._api.serves(kind, patience_s=_OPENING_PATIENCE_S):
            return False
        try:
            await self._look(kind, self.selector, self._told_of_owner(kind), kept_of_job)
        except ApiError as error:
            if error.status != _FORBIDDEN:
                raise
            get_logger().warning("kind not used", kind=kind.name, error=error.message)
            return False
        return True

    async def _look_at_queues(self) -> None:
        """Kueue's Workloads say why a job waits; without the right to see them, its events alone do."""
        if not self._queued:
            return
        for version in _QUEUE_VERSIONS:
            kind = replace(WORKLOADS, api_version=version)
            if not await self._api.serves(kind, patience_s=_OPENING_PATIENCE_S):
                continue
            try:
                everything = ("labelSelector", "")
                await self._look(kind, everything, self._told_of_workload, kept_of_workload)
            except ApiError as error:
                if error.status != _FORBIDDEN:
                    raise
                get_logger().warning("queues not seen", error=error.message)
            return

    def _told_of_owner(self, kind: Kind) -> Callable[[Object, bool], None]:
        def told(job: Object, deleted: bool) -> None:
            if kind is JOBS and (name := part_of(job)):
                self._seer.see_part(name, job)
                return
            self._seer.see_job(kind, job, deleted)

        return told

    def _told_of_pod(self, pod: Object, deleted: bool) -> None:
        name, uid = _name_of(pod), pod["metadata"]["uid"]
        if not deleted:
            self._pods[name][uid] = pod
        elif name in self._pods:
            self._pods[name].pop(uid, None)
            if not self._pods[name]:
                del self._pods[name]
        self._seer.see_pod(name, pod, deleted)

    def _told_of_event(self, event: Object, deleted: bool) -> None:
        if deleted or event["reason"] not in TELLING:
            return
        if name := _regarding(event["involvedObject"]):
            self.told[name][event["reason"]] = event["message"]
            self._seer.see_words(name)

    def _told_of_workload(self, workload: Object, deleted: bool) -> None:
        says = "" if deleted else queue_condition(workload)
        for owner in workload["metadata"].get("ownerReferences") or []:
            name = str(owner.get("name", ""))
            if owner.get("kind") not in _REGARDING or not name.startswith("graft-"):
                continue
            if says:
                self.told[name][QUEUE] = says
            elif name in self.told:
                self.told[name].pop(QUEUE, None)
            self._seer.see_words(name)


def part_of(job: Object) -> str:
    """The attempt whose JobSet made a Job; "" for a Job that nothing made."""
    owners = job["metadata"].get("ownerReferences") or []
    return next((str(one["name"]) for one in owners if one.get("kind") == "JobSet"), "")


def _name_of(pod: Object) -> str:
    """The name of what runs the attempt that a pod belongs to, from its labels."""
    labels: Mapping[str, str] = pod["metadata"].get("labels") or {}
    try:
        job = f"namespaces/{labels[NAMESPACE_LABEL]}/jobs/{labels[JOB_LABEL]}"
        return attempt_object_name(job, int(labels[ATTEMPT_LABEL]))
    except (KeyError, ValueError, GraftError):
        return ""


def _regarding(regarding: Object) -> str:
    """The attempt that an event is about, directly or by one of its parts."""
    kind, name = regarding.get("kind", ""), str(regarding.get("name", ""))
    if not name.startswith(_NAMED):
        return ""
    if kind in (PODS.name, JOBS.name):
        # A pod's name, or that of a JobSet's Job, goes on behind the attempt's.
        match = _POD_NAME.match(f"{name}-")
        return match[1] if match else ""
    if kind in _REGARDING:
        return name
    if kind == WORKLOADS.name:
        # Kueue's name for it: "{kind}-{name}-{digest}".
        return name.partition("-")[2].rpartition("-")[0]
    return ""
